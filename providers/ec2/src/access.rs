//! Credentials, from where AWS's own tools take them: the environment, profiles, web identity, roles of containers and
//! of instances; see "Standardized credential providers" in the AWS SDKs and Tools Reference Guide.
//!
//! They are asked for when they are needed and kept for as long as they hold. A source may be slow, or ask a person: new
//! ones are fetched beside the calls that go on with those that there are. One that fails is left alone for a moment.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::BehaviorVersion;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::refusal::chain;
use crate::wire::Wire;

/// How long before their end credentials are asked for anew; AWS has new ones ready five minutes before.
const BEFORE_END: Duration = Duration::from_secs(4 * 60);
/// How long credentials without an end are believed: a file may say something else by now.
const WITHOUT_END: Duration = Duration::from_secs(5 * 60);
/// How long a source may take: another program may ask a person.
const PATIENCE: Duration = Duration::from_secs(60);
/// How soon a source is asked again that failed, or whose credentials were refused.
const AGAIN: Duration = Duration::from_secs(5);

/// Where credentials come from; clones share what is known.
#[derive(Debug, Clone)]
pub(crate) struct Access(Arc<Source>);

#[derive(Debug)]
struct Source {
    region: String,
    profile: Option<String>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    kept: Option<Kept>,
    /// Since when none can be had, and why.
    failed: Option<(Instant, String)>,
    /// New ones that are on their way, or just came: whoever waits gives up before their source does.
    renewing: Option<Renewing>,
}

type Renewing = Shared<BoxFuture<'static, Result<Credentials, String>>>;

#[derive(Debug, Clone)]
struct Kept {
    credentials: Credentials,
    /// When new ones are wanted.
    until: SystemTime,
    since: Instant,
}

impl Kept {
    fn new(credentials: Credentials, now: SystemTime) -> Self {
        let until = credentials.expiry().map_or(now + WITHOUT_END, |end| end - BEFORE_END);
        Self { credentials, until, since: Instant::now() }
    }

    fn holds(&self, now: SystemTime) -> bool {
        self.credentials.expiry().is_none_or(|end| now < end)
    }
}

impl Access {
    pub(crate) fn new(region: String, profile: Option<String>) -> Self {
        Self(Arc::new(Source { region, profile, known: Mutex::default() }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns credentials that hold at `now`.
    ///
    /// # Errors
    /// When there are none, in words.
    pub(crate) async fn credentials(&self, now: SystemTime) -> Result<Credentials, String> {
        let renewed = {
            let mut known = self.known();
            known.renewing.take_if(|renewing| renewing.peek().is_some());
            if let Some(kept) = known.kept.clone().filter(|kept| kept.holds(now)) {
                if now >= kept.until {
                    // It is a task of its own.
                    drop(self.renew(&mut known, now));
                }
                return Ok(kept.credentials);
            }
            if let Some((since, why)) = &known.failed
                && since.elapsed() < AGAIN
            {
                return Err(why.clone());
            }
            // One at a time: whoever comes meanwhile gets what the first one brings.
            self.renew(&mut known, now)
        };
        renewed.await
    }

    /// Begins to fetch new ones, unless somebody does.
    fn renew(&self, known: &mut Known, now: SystemTime) -> Renewing {
        let begin = || {
            let task = tokio::spawn(self.clone().fetch(now));
            let broken = |_| Err("looking for them was broken off".to_owned());
            task.map(move |ended| ended.unwrap_or_else(broken)).boxed().shared()
        };
        known.renewing.get_or_insert_with(begin).clone()
    }

    async fn fetch(self, now: SystemTime) -> Result<Credentials, String> {
        let found = self.find().await;
        let mut known = self.known();
        match (&found, &mut known.kept) {
            (Ok(found), kept) => {
                *kept = Some(Kept::new(found.clone(), now));
                known.failed = None;
            }
            (Err(why), kept) => {
                if let Some(kept) = kept {
                    warn!(%why, "no new AWS credentials; those that there are hold for a while yet");
                    kept.until = now + AGAIN;
                }
                known.failed = Some((Instant::now(), why.clone()));
            }
        }
        found
    }

    /// Forgets these credentials, which the API did not take: a file may say something else by now. Those that were
    /// just found are what the source says.
    pub(crate) fn forget(&self, refused: &Credentials) {
        let is_refused = |kept: &mut Kept| {
            kept.credentials.access_key_id() == refused.access_key_id()
                && kept.since.elapsed() >= AGAIN
        };
        drop(self.known().kept.take_if(is_refused));
    }

    async fn find(&self) -> Result<Credentials, String> {
        // Anew each time: sources remember what files said.
        let source = self.source().await?;
        let of_profile = self.0.profile.as_ref().map(|name| format!("the profile `{name}`: "));
        let of_profile = of_profile.unwrap_or_default();
        match timeout(PATIENCE, source.provide_credentials()).await {
            Ok(found) => found.map_err(|error| format!("{of_profile}{}", chain(&error))),
            Err(_) => Err(format!("their source did not answer within {PATIENCE:?}")),
        }
    }

    async fn source(&self) -> Result<SharedCredentialsProvider, String> {
        let client = Wire::new().map_err(|error| chain(&error))?;
        let region = aws_config::Region::new(self.0.region.clone());
        // Whoever names a profile means no other credentials, whatever else there may be.
        if let Some(profile) = &self.0.profile {
            let surroundings = ProviderConfig::default().with_http_client(client);
            let provider = ProfileFileCredentialsProvider::builder()
                .configure(&surroundings.with_region(Some(region)))
                .profile_name(profile)
                .build();
            return Ok(SharedCredentialsProvider::new(provider));
        }
        let loader =
            aws_config::defaults(BehaviorVersion::latest()).http_client(client).region(region);
        let config = loader.load().await;
        config.credentials_provider().ok_or_else(|| "no source of credentials".to_owned())
    }
}
