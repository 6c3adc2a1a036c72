//! One signed call of EC2's query API: parameters in, an answer or a refusal out.
//!
//! Repeats nothing. An answer that did not come is told from a call that was never sent: only the first one may have had
//! its effect.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use futures_util::FutureExt as _;
use pool_provider::error::chain;
use pool_provider::http;
use reqwest::header::RETRY_AFTER;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};
use tracing::trace;

use crate::access::{Access, chain_of};
use crate::answer::{Identity, Refused};
use crate::pace::Pace;
use crate::refusal::Refusal;
use crate::request::Parameters;
use crate::sign::{Signed, signature};
use crate::whose::{Ask, Unconfirmed, Whose};

/// The version of the API, the only one in a decade, and that of STS.
const VERSION: &str = "2016-11-15";
const STS_VERSION: &str = "2011-06-15";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// How long an answer may take. AWS's own tools wait as long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the answer of a call may take that only looks, and is repeated where there is none: whoever waits is told nothing
/// meanwhile.
const PATIENCE_OF_LOOK: Duration = Duration::from_secs(30);
/// How long a call waits for its turn once there were too many.
const TURN: Duration = Duration::from_secs(5);
/// The longest pause that is believed to be asked for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const CONNECTING: Duration = Duration::from_secs(5);

/// Tells what time it is.
pub(crate) type Now = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What is called.
#[derive(Debug, Clone, Copy)]
struct Target<'t> {
    endpoint: &'t str,
    service: &'t str,
}

/// The API of one region.
pub(crate) struct Client {
    line: Line,
    endpoint: String,
    access: Access,
    whose: Whose,
    pace: Pace,
}

/// How AWS's services of one region are called.
#[derive(Clone)]
struct Line {
    http: reqwest::Client,
    region: String,
    now: Now,
}

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Until it may be made, where there were too many.
    pub(crate) turn: Duration,
    /// Until it is answered, from then on.
    pub(crate) answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { turn: TURN, answer: PATIENCE }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Client {
    /// Builds a client, which connects when it is first needed.
    ///
    /// # Errors
    /// When it cannot be built, in words.
    pub(crate) fn new(
        (region, endpoint): (String, String),
        profile: Option<String>,
        (identity, now): (Option<String>, Now),
    ) -> Result<Self, String> {
        let known = reqwest::Url::parse(&endpoint)
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.username().is_empty());
        if !known {
            return Err(format!("`{endpoint}` is no address of an API: write https://HOST"));
        }
        // A redirect is no answer of EC2: what is signed is for this host.
        let http = http::secure().redirect(reqwest::redirect::Policy::none());
        let http = http.connect_timeout(CONNECTING);
        let http = http.user_agent(concat!("pool/", env!("CARGO_PKG_VERSION"))).build();
        let http =
            http.map_err(|error| format!("preparing to call {endpoint}: {}", chain(&error)))?;
        let access = Access::new(chain_of(region.clone(), profile));
        let line = Line { http, region, now };
        let whose = Whose::new(identity.map(|endpoint| asking(line.clone(), endpoint)));
        Ok(Self { line, endpoint, access, whose, pace: Pace::default() })
    }

    /// Finds out whose credentials these are, where there is somebody to ask.
    ///
    /// # Errors
    /// Why that is not known, in words.
    pub(crate) async fn ask_account(&self) -> Result<(), String> {
        let found = self.found().await?;
        self.whose.learn(&found).await.map_err(|why| why.to_string())
    }

    /// Returns the number of the account, once it is known.
    pub(crate) fn account(&self) -> Option<&str> {
        self.whose.account()
    }

    /// Makes a call.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        action: &'static str,
        parameters: &Parameters,
    ) -> Result<T, Refusal> {
        self.call_within(Limits::default(), action, parameters).await
    }

    /// Makes a call that only looks.
    pub(crate) async fn look<T: DeserializeOwned>(
        &self,
        action: &'static str,
        parameters: &Parameters,
    ) -> Result<T, Refusal> {
        let limits = Limits { answer: PATIENCE_OF_LOOK, ..Limits::default() };
        self.call_within(limits, action, parameters).await
    }

    /// Makes a call that may take so long.
    pub(crate) async fn call_within<T: DeserializeOwned>(
        &self,
        limits: Limits,
        action: &'static str,
        parameters: &Parameters,
    ) -> Result<T, Refusal> {
        let asked = self.pace.wait(action, limits.turn).await.map_err(|wait| Refusal::Code {
            code: "RequestLimitExceeded".to_owned(),
            message: format!("there were too many {action} calls a moment ago"),
            retry_after: Some(wait),
        })?;
        let late =
            || Refusal::Lost(format!("no answer of {} within {:?}", self.endpoint, limits.answer));
        let answered = timeout(limits.answer, self.send_signed(action, parameters, asked)).await;
        answered.unwrap_or_else(|_| Err(late()))
    }

    async fn send_signed<T: DeserializeOwned>(
        &self,
        action: &'static str,
        parameters: &Parameters,
        asked: Instant,
    ) -> Result<T, Refusal> {
        let credentials = self.credentials().await?;
        let body = body(action, VERSION, parameters);
        let target = Target { endpoint: &self.endpoint, service: "ec2" };
        trace!(action, endpoint = %self.endpoint, "calling");
        match self.line.send(target, action, body, &credentials).await {
            Err(refusal) if refusal.is_too_many() => {
                Err(refusal.not_before(self.pace.refused(action, asked)))
            }
            Err(refusal @ Refusal::Code { .. }) => {
                if refusal.is_about_credentials() {
                    self.access.forget(&credentials);
                }
                self.pace.passed(action);
                Err(refusal)
            }
            Ok(answer) => {
                self.pace.passed(action);
                Ok(answer)
            }
            lost => lost,
        }
    }

    async fn found(&self) -> Result<Credentials, String> {
        let found = self.access.credentials((self.line.now)()).await;
        found.map_err(|why| format!("no AWS credentials: {why}"))
    }

    async fn credentials(&self) -> Result<Credentials, Refusal> {
        let found = self.found().await.map_err(Refusal::NoCredentials)?;
        self.whose.confirm(&found).await.map_err(|why| {
            if matches!(why, Unconfirmed::Other(_)) {
                self.access.forget(&found);
            }
            Refusal::NoCredentials(why.to_string())
        })?;
        Ok(found)
    }
}

/// Returns what asks the STS at `endpoint` for an account's number.
fn asking(line: Line, endpoint: String) -> Box<Ask> {
    Box::new(move |credentials| {
        let (line, endpoint) = (line.clone(), endpoint.clone());
        async move {
            let body = body("GetCallerIdentity", STS_VERSION, &Vec::new());
            let target = Target { endpoint: &endpoint, service: "sts" };
            let identity: Identity =
                line.send(target, "GetCallerIdentity", body, &credentials).await?;
            Ok(identity.into_account())
        }
        .boxed()
    })
}

impl Line {
    async fn send<T: DeserializeOwned>(
        &self,
        target: Target<'_>,
        action: &str,
        body: String,
        credentials: &Credentials,
    ) -> Result<T, Refusal> {
        let Target { endpoint, service } = target;
        let signed = Signed {
            method: "POST",
            url: endpoint,
            headers: &[("content-type", FORM)],
            body: body.as_bytes(),
            scope: (&self.region, service),
            at: (self.now)(),
        };
        let unsent = |why: String| Refusal::NotSent(format!("preparing a call of {action}: {why}"));
        let headers = signature(signed, credentials).map_err(unsent)?;
        let mut request = self.http.post(endpoint).header("content-type", FORM);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let answer =
            request.body(body).send().await.map_err(|error| unanswered(endpoint, &error))?;
        let status = answer.status();
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| {
            let seconds = value.to_str().ok()?.trim().parse().ok()?;
            Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
        });
        let text = answer.text().await.map_err(|error| lost(endpoint, &error))?;
        if status.is_success() {
            return quick_xml::de::from_str(&text).map_err(|error| {
                Refusal::Lost(format!("{endpoint} answered what is no answer to {action}: {error}"))
            });
        }
        let refused = quick_xml::de::from_str::<Refused>(&text).ok();
        match refused.and_then(Refused::into_parts) {
            Some((code, message)) => Err(Refusal::Code { code, message, retry_after }),
            // Somebody in between, who says nothing of the call.
            None => Err(Refusal::Lost(format!(
                "{endpoint} answered {status}, and not as {service} does: {}",
                text.chars().filter(|c| !c.is_control()).take(200).collect::<String>()
            ))),
        }
    }
}

fn unanswered(endpoint: &str, error: &reqwest::Error) -> Refusal {
    if error.is_connect() || error.is_builder() {
        return Refusal::NotSent(format!("nobody answers at {endpoint}: {}", chain(error)));
    }
    lost(endpoint, error)
}

fn lost(endpoint: &str, error: &reqwest::Error) -> Refusal {
    Refusal::Lost(format!("no answer of {endpoint}: {}", chain(error)))
}

/// Writes the body of a call.
fn body(action: &str, version: &str, parameters: &Parameters) -> String {
    form_urlencoded::Serializer::new(String::new())
        .append_pair("Action", action)
        .append_pair("Version", version)
        .extend_pairs(parameters)
        .finish()
}
