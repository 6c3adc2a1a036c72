//! Whose AWS account credentials are of: with those of another account every worker would look gone.
//!
//! STS is asked once for each access key. Once it has said so, nothing is called with credentials of another account, nor
//! with some of which nobody can tell; before that, nobody waits for it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use aws_credential_types::Credentials;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::joint::Joint;
use crate::refusal::Refusal;

/// How long STS may take.
const ASKING: Duration = Duration::from_secs(5);
/// How soon it is asked again for the same key.
const AGAIN: Duration = Duration::from_secs(10);

/// Asks STS whose credentials these are.
pub(crate) type Ask =
    dyn Fn(Credentials) -> BoxFuture<'static, Result<String, Refusal>> + Send + Sync;

/// What is known of the account; clones share it.
#[derive(Clone)]
pub(crate) struct Whose(Arc<Shared>);

struct Shared {
    /// `None` where there is nobody to ask.
    ask: Option<Box<Ask>>,
    account: OnceLock<String>,
    asked: Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    /// The access key that is of the account.
    confirmed: Option<String>,
    /// The access key of which that could not be said, since when, and why.
    unconfirmed: Option<(String, Instant, Unconfirmed)>,
    /// The access key that STS is asked for.
    asking: Option<(String, Joint<Result<(), Unconfirmed>>)>,
}

/// Why credentials are not known to be of the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unconfirmed {
    /// They are of another one.
    Other(String),
    /// Nobody says.
    Untold(String),
}

impl fmt::Display for Unconfirmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(why) | Self::Untold(why) => f.write_str(why),
        }
    }
}

impl fmt::Debug for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Whose").field("account", &self.0.account).finish_non_exhaustive()
    }
}

impl Whose {
    pub(crate) fn new(ask: Option<Box<Ask>>) -> Self {
        Self(Arc::new(Shared { ask, account: OnceLock::new(), asked: Mutex::default() }))
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the account, once it is known.
    pub(crate) fn account(&self) -> Option<&str> {
        self.0.account.get().map(String::as_str)
    }

    /// Finds out of which account credentials are.
    ///
    /// # Errors
    /// When that cannot be told, or it is another one than before.
    pub(crate) async fn learn(&self, credentials: &Credentials) -> Result<(), Unconfirmed> {
        match self.ask(credentials) {
            Ok(()) => Ok(()),
            Err(Pending::Known(unconfirmed)) => Err(unconfirmed),
            Err(Pending::Asking(asking)) => asking.ended().await.unwrap_or(Ok(())),
        }
    }

    /// Makes sure that credentials are of the account, as far as it is known.
    ///
    /// # Errors
    /// When they are of another one, or that cannot be told although it could be before.
    pub(crate) async fn confirm(&self, credentials: &Credentials) -> Result<(), Unconfirmed> {
        let told = match self.ask(credentials) {
            Err(Pending::Asking(_)) if self.account().is_none() => return Ok(()),
            Err(Pending::Asking(asking)) => asking.ended().await.unwrap_or(Ok(())),
            Err(Pending::Known(unconfirmed)) => Err(unconfirmed),
            Ok(()) => Ok(()),
        };
        match told {
            Err(Unconfirmed::Untold(_)) if self.account().is_none() => Ok(()),
            told => told,
        }
    }

    /// Says what is known of credentials, and has STS asked where that is nothing.
    fn ask(&self, credentials: &Credentials) -> Result<(), Pending> {
        if self.0.ask.is_none() {
            return Ok(());
        }
        let key = credentials.access_key_id();
        let mut asked = self.asked();
        if asked.confirmed.as_deref() == Some(key) {
            return Ok(());
        }
        if let Some((of, since, why)) = &asked.unconfirmed
            && of == key
            && since.elapsed() < AGAIN
        {
            return Err(Pending::Known(why.clone()));
        }
        asked.asking.take_if(|(of, asking)| of != key || asking.is_over());
        let begin = || (key.to_owned(), Joint::begin(self.clone().find_out(credentials.clone())));
        let (_, asking) = asked.asking.get_or_insert_with(begin);
        Err(Pending::Asking(asking.clone()))
    }

    async fn find_out(self, credentials: Credentials) -> Result<(), Unconfirmed> {
        let Some(ask) = &self.0.ask else { return Ok(()) };
        let key = credentials.access_key_id().to_owned();
        let why = match timeout(ASKING, ask(credentials)).await {
            Ok(Ok(account)) => {
                let known = self.0.account.get_or_init(|| account.clone());
                if *known == account {
                    self.asked().confirmed = Some(key);
                    return Ok(());
                }
                Unconfirmed::Other(format!(
                    "the AWS credentials are of account {account} by now, and were of account {known}"
                ))
            }
            Ok(Err(refusal)) => untold(&refusal.text()),
            Err(_) => untold(&format!("STS did not answer within {ASKING:?}")),
        };
        warn!("{why}");
        self.asked().unconfirmed = Some((key, Instant::now(), why.clone()));
        Err(why)
    }
}

fn untold(why: &str) -> Unconfirmed {
    Unconfirmed::Untold(format!(
        "it is not known whose AWS account this is: {why} (AWS_ENDPOINT_URL_STS says where else STS is)"
    ))
}

/// What there is of credentials that are not confirmed.
enum Pending {
    Known(Unconfirmed),
    Asking(Joint<Result<(), Unconfirmed>>),
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::time::{advance, sleep};

    use super::*;

    /// An STS that says this, now; `None` is silence.
    type Sts = Arc<Mutex<Option<&'static str>>>;

    fn sts() -> (Sts, Whose) {
        let says = Sts::default();
        let answer = Arc::clone(&says);
        let ask = move |_| {
            let answer = *answer.lock().unwrap();
            async move {
                match answer {
                    Some(account) => Ok(account.to_owned()),
                    None => std::future::pending().await,
                }
            }
            .boxed()
        };
        (says, Whose::new(Some(Box::new(ask))))
    }

    fn key(id: &str) -> Credentials {
        Credentials::new(id, "secret", None, None, "tests")
    }

    fn says(sts: &Sts, account: Option<&'static str>) {
        *sts.lock().unwrap() = account;
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_is_asked_for_once_and_has_to_be_of_the_account() {
        let (sts, whose) = sts();
        says(&sts, Some("1"));
        assert_eq!(whose.learn(&key("a")).await, Ok(()));
        assert_eq!(whose.account(), Some("1"));
        says(&sts, None);
        assert_eq!(whose.confirm(&key("a")).await, Ok(()));
        says(&sts, Some("1"));
        assert_eq!(whose.confirm(&key("b")).await, Ok(()));
        says(&sts, Some("2"));
        let other = whose.confirm(&key("c")).await.unwrap_err();
        let why = other.to_string();
        assert!(why.contains("of account 2 by now, and were of account 1"), "{why}");
        // STS is not asked with each call, and another key is another question.
        says(&sts, Some("1"));
        assert_eq!(whose.confirm(&key("c")).await, Err(other));
        assert_eq!(whose.confirm(&key("d")).await, Ok(()));
        assert_eq!(whose.account(), Some("1"));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_an_sts_that_never_said_anything() {
        let (sts, whose) = sts();
        let before = Instant::now();
        assert_eq!(whose.confirm(&key("a")).await, Ok(()));
        assert_eq!(before, Instant::now());
        // Who asks for it is told, and calls go on.
        assert!(matches!(whose.learn(&key("a")).await, Err(Unconfirmed::Untold(_))));
        assert_eq!(whose.confirm(&key("a")).await, Ok(()));
        advance(AGAIN).await;
        says(&sts, Some("1"));
        assert_eq!(whose.confirm(&key("a")).await, Ok(()));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(whose.account(), Some("1"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_that_was_known_has_to_be_known_again() {
        let (sts, whose) = sts();
        says(&sts, Some("1"));
        assert_eq!(whose.learn(&key("a")).await, Ok(()));
        says(&sts, None);
        // Those who give up sooner than STS does leave the question asked.
        for _ in 0..3 {
            let brief = timeout(Duration::from_secs(2), whose.confirm(&key("b"))).await;
            assert!(!matches!(brief, Ok(Ok(()))));
        }
        let untold = whose.confirm(&key("b")).await.unwrap_err();
        assert!(matches!(untold, Unconfirmed::Untold(_)), "{untold}");
        advance(AGAIN).await;
        says(&sts, Some("1"));
        assert_eq!(whose.confirm(&key("b")).await, Ok(()));
    }
}
