//! Credentials, from where AWS's own tools take them: the environment, profiles, web identity, roles of containers and
//! of instances; see "Standardized credential providers" in the AWS SDKs and Tools Reference Guide.
//!
//! They are asked for when they are needed and kept for as long as they hold. Where new ones cannot be had, those that
//! still hold are used.

use std::time::{Duration, SystemTime};

use aws_config::BehaviorVersion;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use pool_provider::http;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::warn;

use crate::refusal::chain;
use crate::wire::Wire;

/// How long before their end credentials are asked for anew; AWS has new ones ready five minutes before.
const BEFORE_END: Duration = Duration::from_secs(4 * 60);
/// How long credentials without an end are believed: a file may say something else by now.
const WITHOUT_END: Duration = Duration::from_secs(5 * 60);

/// How long a source may take: another program may ask a person.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where credentials come from.
#[derive(Debug)]
pub(crate) struct Access {
    region: String,
    profile: Option<String>,
    /// What was found last, and until when it is believed.
    known: Mutex<Option<(Credentials, SystemTime)>>,
}

impl Access {
    pub(crate) fn new(region: String, profile: Option<String>) -> Self {
        Self { region, profile, known: Mutex::default() }
    }

    /// Returns credentials that hold at `now`.
    ///
    /// # Errors
    /// When there are none, in words.
    pub(crate) async fn credentials(&self, now: SystemTime) -> Result<Credentials, String> {
        // One at a time: whoever comes meanwhile finds what the first one brought.
        let mut known = self.known.lock().await;
        if let Some((credentials, until)) = &*known
            && now < *until
        {
            return Ok(credentials.clone());
        }
        // Anew each time: sources remember what files said.
        let source = self.source().await?;
        let of_profile = self.profile.as_ref().map(|name| format!("the profile `{name}`: "));
        let of_profile = of_profile.unwrap_or_default();
        let found = match timeout(PATIENCE, source.provide_credentials()).await {
            Ok(found) => found.map_err(|error| format!("{of_profile}{}", chain(&error))),
            Err(_) => Err(format!("their source did not answer within {PATIENCE:?}")),
        };
        match found {
            Ok(found) => {
                let end = found.expiry();
                let until = end.map_or(now + WITHOUT_END, |end| end - BEFORE_END);
                *known = Some((found.clone(), until));
                Ok(found)
            }
            Err(why) => {
                let old = known.as_ref().map(|(credentials, _)| credentials);
                let holds = |old: &&Credentials| old.expiry().is_some_and(|end| now < end);
                let Some(old) = old.filter(holds) else { return Err(why) };
                warn!(%why, "no new AWS credentials; those that there are hold for a while yet");
                Ok(old.clone())
            }
        }
    }

    /// Forgets what is known: the API did not take it.
    pub(crate) async fn forget(&self) {
        *self.known.lock().await = None;
    }

    async fn source(&self) -> Result<SharedCredentialsProvider, String> {
        let http = http::secure().redirect(reqwest::redirect::Policy::none()).build();
        let client = Wire(http.map_err(|error| chain(&error))?);
        let region = aws_config::Region::new(self.region.clone());
        // Whoever names a profile means no other credentials, whatever else there may be.
        if let Some(profile) = &self.profile {
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
