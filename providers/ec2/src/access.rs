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
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pool_provider::error::chain;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::joint::Joint;
use crate::wire::Wire;

/// How long before their end credentials are asked for anew; AWS has new ones ready five minutes before.
const BEFORE_END: Duration = Duration::from_secs(4 * 60);
/// How long credentials without an end are believed: a file may say something else by now.
const WITHOUT_END: Duration = Duration::from_secs(5 * 60);
/// How long a source may take: another program may ask a person.
const PATIENCE: Duration = Duration::from_secs(60);
/// How soon a source is asked again that failed, or whose credentials were refused.
const AGAIN: Duration = Duration::from_secs(5);

/// Looks for credentials, wherever they come from.
pub(crate) type Find = dyn Fn() -> BoxFuture<'static, Result<Credentials, String>> + Send + Sync;

/// Credentials by their source; clones share what is known.
#[derive(Clone)]
pub(crate) struct Access(Arc<Source>);

struct Source {
    find: Box<Find>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    kept: Option<Kept>,
    /// Since when none can be had, and why.
    failed: Option<(Instant, String)>,
    /// New ones that are on their way.
    renewing: Option<Joint<Result<Credentials, String>>>,
}

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
    /// Has `find` look for credentials: anew each time, as sources remember what files said.
    pub(crate) fn new(find: Box<Find>) -> Self {
        Self(Arc::new(Source { find, known: Mutex::default() }))
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
            known.renewing.take_if(|renewing| renewing.is_over());
            if let Some(kept) = known.kept.clone().filter(|kept| kept.holds(now)) {
                if now >= kept.until {
                    self.renew(&mut known, now);
                }
                return Ok(kept.credentials);
            }
            if let Some((since, why)) = &known.failed
                && since.elapsed() < AGAIN
            {
                return Err(why.clone());
            }
            // One at a time: whoever comes meanwhile gets what the first one brings.
            self.renew(&mut known, now).clone()
        };
        let broken = || Err("looking for them was broken off".to_owned());
        renewed.ended().await.unwrap_or_else(broken)
    }

    /// Begins to fetch new ones, unless somebody does.
    fn renew<'k>(
        &self,
        known: &'k mut Known,
        now: SystemTime,
    ) -> &'k Joint<Result<Credentials, String>> {
        known.renewing.get_or_insert_with(|| Joint::begin(self.clone().fetch(now)))
    }

    async fn fetch(self, now: SystemTime) -> Result<Credentials, String> {
        let late = || Err(format!("their source did not answer within {PATIENCE:?}"));
        let found = timeout(PATIENCE, (self.0.find)()).await.unwrap_or_else(|_| late());
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
}

/// Returns what looks for credentials where AWS's own tools do.
pub(crate) fn chain_of(region: String, profile: Option<String>) -> Box<Find> {
    Box::new(move || {
        let (region, profile) = (region.clone(), profile.clone());
        async move {
            let source = source(region, profile.clone()).await?;
            let found = source.provide_credentials().await;
            found.map_err(|error| untold(profile.as_deref(), &error))
        }
        .boxed()
    })
}

/// Says why there are none, and where they could be.
fn untold(profile: Option<&str>, error: &CredentialsError) -> String {
    let why = chain(error);
    let Some(name) = profile else {
        return format!(
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role gives them; \
             what was tried: {why}"
        );
    };
    match error {
        CredentialsError::CredentialsNotLoaded(_) => format!(
            "the profile `{name}` is not there, or says nothing of credentials, in ~/.aws/config and \
             ~/.aws/credentials or where AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE say: {why}"
        ),
        _ => format!("the profile `{name}`: {why}"),
    }
}

async fn source(
    region: String,
    profile: Option<String>,
) -> Result<SharedCredentialsProvider, String> {
    let client = Wire::new().map_err(|error| chain(&error))?;
    let region = aws_config::Region::new(region);
    // Whoever names a profile means no other credentials, whatever else there may be.
    if let Some(profile) = &profile {
        let surroundings = ProviderConfig::default().with_http_client(client);
        let provider = ProfileFileCredentialsProvider::builder()
            .configure(&surroundings.with_region(Some(region)))
            .profile_name(profile)
            .build();
        return Ok(SharedCredentialsProvider::new(provider));
    }
    let loader = aws_config::defaults(BehaviorVersion::latest()).http_client(client).region(region);
    let config = loader.load().await;
    config.credentials_provider().ok_or_else(|| "no source of credentials".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::{advance, sleep};

    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);
    const BEGIN: SystemTime = SystemTime::UNIX_EPOCH;

    /// The number of credentials that were asked for, and what asks: each hold for an hour, and take a second to come.
    fn hourly(now: Arc<Mutex<SystemTime>>) -> (Arc<AtomicU32>, Access) {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&asked);
        let find = move || {
            let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
            let end = *now.lock().unwrap() + HOUR;
            async move {
                sleep(Duration::from_secs(1)).await;
                Ok(Credentials::new(format!("key-{number}"), "secret", None, Some(end), "tests"))
            }
            .boxed()
        };
        (asked, Access::new(Box::new(find)))
    }

    async fn key(access: &Access, now: SystemTime) -> String {
        access.credentials(now).await.unwrap().access_key_id().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn new_ones_are_fetched_beside_the_calls_each_time_the_old_ones_near_their_end() {
        let clock = Arc::new(Mutex::new(BEGIN));
        let (asked, access) = hourly(Arc::clone(&clock));
        assert_eq!(key(&access, BEGIN).await, "key-1");
        let mut now = BEGIN;
        for number in 1..5 {
            now += HOUR.checked_sub(BEFORE_END).unwrap();
            *clock.lock().unwrap() = now;
            // Nobody waits for them.
            let before = Instant::now();
            assert_eq!(key(&access, now).await, format!("key-{number}"));
            assert_eq!(key(&access, now).await, format!("key-{number}"));
            assert_eq!(before, Instant::now());
            sleep(Duration::from_secs(2)).await;
            assert_eq!(key(&access, now).await, format!("key-{}", number + 1));
            assert_eq!(asked.load(Ordering::SeqCst), number + 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_leaves_what_comes_to_the_next_one() {
        let (asked, access) = hourly(Arc::new(Mutex::new(BEGIN)));
        let brief = timeout(Duration::from_millis(500), access.credentials(BEGIN)).await;
        assert!(brief.is_err());
        let brief = timeout(Duration::from_millis(600), access.credentials(BEGIN)).await;
        assert_eq!(brief.unwrap().unwrap().access_key_id(), "key-1");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_fails_is_left_alone_for_a_moment() {
        let asked = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&asked);
        let find = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            async { Err("no".to_owned()) }.boxed()
        };
        let access = Access::new(Box::new(find));
        for _ in 0..5 {
            assert_eq!(access.credentials(BEGIN).await.unwrap_err(), "no");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        advance(AGAIN).await;
        assert_eq!(access.credentials(BEGIN).await.unwrap_err(), "no");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_forgotten_once_its_source_may_say_something_else() {
        let (_, access) = hourly(Arc::new(Mutex::new(BEGIN)));
        let first = access.credentials(BEGIN).await.unwrap();
        access.forget(&first);
        assert_eq!(key(&access, BEGIN).await, "key-1");
        advance(AGAIN).await;
        access.forget(&first);
        assert_eq!(key(&access, BEGIN).await, "key-2");
        advance(AGAIN).await;
        // A late refusal of the old ones.
        access.forget(&first);
        assert_eq!(key(&access, BEGIN).await, "key-2");
    }
}
