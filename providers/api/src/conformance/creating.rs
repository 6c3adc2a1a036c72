//! Rules about creates: once and whole, whatever becomes of the answer.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{ABANDONED_AFTER_MS, STILL, Stop, Subject, Trial, Tried, told};
use crate::error::ProviderError;
use crate::provider::{CreateRequest, Idempotency, WorkerProvider as _};
use crate::spec::ObservedWorker;

impl<S: Subject> Trial<'_, S> {
    /// What a repeat of the same attempt may answer.
    fn is_fine(
        &self,
        first: &ObservedWorker,
        again: &Result<ObservedWorker, ProviderError>,
    ) -> bool {
        match (self.subject.provider().describe().idempotency, again) {
            (Idempotency::Token, Ok(again)) => again.provider_id == first.provider_id,
            (Idempotency::UniqueName, Err(ProviderError::AlreadyExists(_))) => true,
            (Idempotency::None, _) => true,
            (Idempotency::Token | Idempotency::UniqueName, _) => false,
        }
    }

    pub(super) async fn repeated_create(&self) -> Tried {
        if self.subject.provider().describe().idempotency == Idempotency::None {
            return Err(Stop::NotTried("`idempotency` is none: creates are not repeated"));
        }
        let first = self.create(0).await?;
        let again = self.subject.provider().create(&self.request(0)).await;
        if !self.is_fine(&first, &again) {
            let again = told::answer(&again);
            return Err(format!("the second create of one attempt answered {again}").into());
        }
        self.list_until(1).await?;
        Ok(self.clean().await?)
    }

    pub(super) async fn creates_side_by_side(&self) -> Tried {
        if self.subject.provider().describe().idempotency == Idempotency::None {
            return Err(Stop::NotTried("`idempotency` is none: creates are not repeated"));
        }
        let (one, other) = (self.subject.provider(), self.subject.provider());
        let request = self.request(0);
        let (one, other) = tokio::join!(one.create(&request), other.create(&request));
        let (first, again) = if one.is_ok() { (one, other) } else { (other, one) };
        let first =
            first.map_err(|error| format!("both failed: {error}; {}", told::answer(&again)))?;
        if !self.is_fine(&first, &again) {
            let (first, again) = (told::answer(&Ok(first)), told::answer(&again));
            return Err(format!("two creates of one attempt answered {first} and {again}").into());
        }
        self.list_until(1).await?;
        Ok(self.clean().await?)
    }

    pub(super) async fn tags_round_trip(&self) -> Tried {
        let mut request = self.request(3);
        // Whatever a pool's workers have, these have some.
        request.spec.labels.insert("conformance".to_owned(), "yes".to_owned());
        request.spec.tags.push("conformance".to_owned());
        let created = self.create_as(&request).await?;
        let listed = self.list_until(1).await?.remove(0);
        for (what, worker) in [("created", created), ("listed", listed)] {
            let expected = ObservedWorker {
                name: request.name.clone(),
                attempt: request.attempt,
                operation: request.operation,
                spec_hash: request.spec_hash.clone(),
                labels: request.spec.labels.clone(),
                tags: request.spec.tags.clone(),
                ..worker.clone()
            };
            let differences = told::differences(&expected, &worker);
            if !differences.is_empty() {
                return Err(
                    format!("{what} otherwise than asked: {}", differences.join("; ")).into()
                );
            }
        }
        Ok(self.clean().await?)
    }

    pub(super) async fn invalid(&self) -> Tried {
        let Some(spec) = self.subject.invalid_spec() else {
            return Err(Stop::NotTried("the provider names no `invalid_image`"));
        };
        let request = CreateRequest { spec, ..self.request(0) };
        match self.subject.provider().create(&request).await {
            Err(ProviderError::InvalidSpec(_)) => {
                sleep(self.subject.provider().describe().lag()).await;
                self.list_until(0).await?;
                Ok(())
            }
            answer => Err(format!("create answered {}", told::answer(&answer)).into()),
        }
    }

    pub(super) async fn lost_answer(&self) -> Tried {
        if !self.subject.lose_next_create() {
            return Err(Stop::NotTried("no answer can be lost on purpose here"));
        }
        match self.subject.provider().create(&self.request(0)).await {
            Err(error) if error.is_unknown() => {}
            answer => {
                return Err(format!("create answered {}", told::answer(&answer)).into());
            }
        }
        self.list_until(1).await?;
        Ok(self.clean().await?)
    }

    pub(super) async fn abandoned(&self) -> Tried {
        if self.subject.provider().describe().idempotency == Idempotency::None {
            return Err(Stop::NotTried("`idempotency` is none: creates are not repeated"));
        }
        let stages = stages(self.time_of_a_create().await?);
        for (slot, limit) in (1..).zip(stages) {
            let request = self.abandon_create(slot, limit).await;
            match self.subject.provider().create(&request).await {
                Ok(_) | Err(ProviderError::AlreadyExists(_)) => {}
                Err(error) => {
                    return Err(format!("abandoned after {limit:?}: repeat: {error}").into());
                }
            }
        }
        let listed = self.list_until(stages.len() + 1).await?;
        let names: BTreeSet<String> = listed.iter().map(|worker| worker.name.to_string()).collect();
        if names.len() != listed.len() {
            let listed = told::names(&listed);
            return Err(format!("an abandoned create made a second worker: {listed}").into());
        }
        Ok(self.clean().await?)
    }

    pub(super) async fn late_effects(&self) -> Tried {
        let whole = self.time_of_a_create().await?;
        // The one that is cut off first comes last: what it brings has the least time to show.
        for (slot, limit) in (1..).zip(stages(whole).into_iter().rev()) {
            let _request = self.abandon_create(slot, limit).await;
        }
        let settle = self.subject.provider().describe().settle;
        sleep(settle).await;
        let ids = async || -> Result<BTreeSet<String>, String> {
            Ok(self.list().await?.into_iter().map(|worker| worker.provider_id).collect())
        };
        let settled = ids().await?;
        // A call that went on as if nobody had cut it off would have its effect by then.
        let still = whole.max(STILL);
        sleep(still).await;
        let late = ids().await?;
        if late != settled {
            let (came, went) = (difference(&late, &settled), difference(&settled, &late));
            return Err(format!(
                "later than {settle:?} after the calls were cut off, {came} came and {went} went"
            )
            .into());
        }
        self.clean().await?;
        sleep(still).await;
        match self.list().await?.as_slice() {
            [] => Ok(()),
            back => Err(format!("after their deletion, {} came back", told::names(back)).into()),
        }
    }

    /// Creates a worker, and returns how long that took.
    async fn time_of_a_create(&self) -> Result<Duration, String> {
        let begun = Instant::now();
        self.create(0).await?;
        Ok(begun.elapsed())
    }

    /// Begins a create and drops the call: what a killed caller looks like to the provider.
    async fn abandon_create(&self, slot: u32, limit: Duration) -> CreateRequest {
        let provider = self.subject.provider();
        let request = self.request(slot);
        let _abandoned = timeout(limit, provider.create(&request)).await;
        request
    }
}

/// Says which ids are in the one and not in the other.
fn difference(one: &BTreeSet<String>, other: &BTreeSet<String>) -> String {
    let ids: Vec<&str> = one.difference(other).map(String::as_str).collect();
    if ids.is_empty() { "nothing".to_owned() } else { ids.join(", ") }
}

/// Returns after how long calls are abandoned that take `whole`.
pub(super) fn stages(whole: Duration) -> [Duration; ABANDONED_AFTER_MS.len()] {
    let mut fifth = 0;
    ABANDONED_AFTER_MS.map(|ms| {
        let limit = Duration::from_millis(ms).max(whole * fifth / 5);
        fifth += 1;
        limit
    })
}
