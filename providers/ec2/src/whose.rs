//! Whose AWS account credentials are of: with those of another account every worker would look gone.
//!
//! STS is asked once for each access key. Once it has said so, nothing is called with credentials of another account, nor
//! with some of which nobody can tell.

use std::sync::OnceLock;
use std::time::Duration;

use aws_credential_types::Credentials;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::refusal::Refusal;

/// How long STS may take.
const ASKING: Duration = Duration::from_secs(5);
/// How soon it is asked again where it did not answer.
const AGAIN: Duration = Duration::from_secs(10);

/// What is known of the account.
#[derive(Debug)]
pub(crate) struct Whose {
    /// Where STS is; `None` where there is none to ask.
    endpoint: Option<String>,
    account: OnceLock<String>,
    asked: Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    /// The access key that is of the account.
    confirmed: Option<String>,
    /// Since when it does not help to ask, and why.
    unanswered: Option<(Instant, String)>,
}

impl Whose {
    pub(crate) fn new(endpoint: Option<String>) -> Self {
        Self { endpoint, account: OnceLock::new(), asked: Mutex::default() }
    }

    /// Returns the account, once it is known.
    pub(crate) fn account(&self) -> Option<&str> {
        self.account.get().map(String::as_str)
    }

    /// Makes sure that credentials are of the account; those of which it is first known say which one that is. `ask`
    /// calls the STS at an address.
    ///
    /// # Errors
    /// When they are of another one, or that cannot be told although it could be before; in words.
    pub(crate) async fn confirm(
        &self,
        credentials: &Credentials,
        ask: impl AsyncFnOnce(&str) -> Result<String, Refusal>,
    ) -> Result<(), String> {
        let Some(endpoint) = &self.endpoint else { return Ok(()) };
        let key = credentials.access_key_id();
        let mut asked = self.asked.lock().await;
        if asked.confirmed.as_deref() == Some(key) {
            return Ok(());
        }
        if let Some((since, why)) = &asked.unanswered
            && since.elapsed() < AGAIN
        {
            return self.untold(why);
        }
        let why = match timeout(ASKING, ask(endpoint)).await {
            Ok(Ok(account)) => {
                let known = self.account.get_or_init(|| account.clone());
                if *known == account {
                    *asked = Asked { confirmed: Some(key.to_owned()), unanswered: None };
                    return Ok(());
                }
                format!(
                    "the AWS credentials are of account {account} by now, and were of account {known}"
                )
            }
            Ok(Err(refusal)) => untellable(&refusal.text()),
            Err(_) => untellable(&format!("no answer of {endpoint} within {ASKING:?}")),
        };
        warn!(endpoint, "{why}");
        let untold = self.untold(&why);
        asked.unanswered = Some((Instant::now(), why));
        untold
    }

    /// Makes sure that the account is known, where there is somebody to ask.
    ///
    /// # Errors
    /// Why it is not, in words.
    pub(crate) async fn known(&self) -> Result<(), String> {
        if self.endpoint.is_none() || self.account.get().is_some() {
            return Ok(());
        }
        let asked = self.asked.lock().await;
        Err(asked.unanswered.as_ref().map_or_else(String::new, |(_, why)| why.clone()))
    }

    fn untold(&self, why: &str) -> Result<(), String> {
        if self.account.get().is_some() { Err(why.to_owned()) } else { Ok(()) }
    }
}

fn untellable(why: &str) -> String {
    format!("it is not known whose AWS account this is: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Credentials {
        Credentials::new(id, "secret", None, None, "tests")
    }

    async fn told(whose: &Whose, id: &str, account: Option<&str>) -> Result<(), String> {
        let answer = account.map(str::to_owned).ok_or_else(|| Refusal::Lost("no".to_owned()));
        whose.confirm(&key(id), async |_| answer).await
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_is_asked_for_once_and_has_to_be_of_the_account() {
        let whose = Whose::new(Some("https://sts".to_owned()));
        assert_eq!(told(&whose, "a", Some("1")).await, Ok(()));
        assert_eq!(whose.account(), Some("1"));
        // Nobody is asked.
        assert_eq!(told(&whose, "a", None).await, Ok(()));
        assert_eq!(told(&whose, "b", Some("1")).await, Ok(()));
        let other = told(&whose, "c", Some("2")).await.unwrap_err();
        assert!(other.contains("of account 2 by now, and were of account 1"), "{other}");
        // STS is not asked with each call.
        assert_eq!(told(&whose, "c", Some("1")).await.unwrap_err(), other);
        assert_eq!(whose.account(), Some("1"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_that_was_known_has_to_be_known_again() {
        let whose = Whose::new(Some("https://sts".to_owned()));
        // Where nobody ever told, nobody has to.
        assert_eq!(told(&whose, "a", None).await, Ok(()));
        assert_eq!(whose.account(), None);
        // It is left alone for a moment.
        assert_eq!(told(&whose, "a", Some("1")).await, Ok(()));
        assert_eq!(whose.account(), None);
        tokio::time::advance(AGAIN).await;
        assert_eq!(told(&whose, "a", Some("1")).await, Ok(()));
        assert_eq!(whose.account(), Some("1"));
        let untold = told(&whose, "b", None).await.unwrap_err();
        assert!(untold.contains("it is not known whose AWS account this is"), "{untold}");
        tokio::time::advance(AGAIN).await;
        assert_eq!(told(&whose, "b", Some("1")).await, Ok(()));
    }
}
