//! Rules about what is done to a worker that exists, and to one that does not.

use std::collections::BTreeMap;

use tokio::time::{Instant, timeout};

use super::creating::stages;
use super::{CALL_LIMIT, Stop, Subject, Trial, Tried, told};
use crate::error::ProviderError;
use crate::provider::{
    CreateRequest, InPlaceField, ResetRequest, UpdateRequest, WorkerProvider as _,
};

impl<S: Subject> Trial<'_, S> {
    pub(super) async fn update_in_place(&self) -> Tried {
        let description = self.subject.provider().describe();
        let both = [InPlaceField::Labels, InPlaceField::Tags];
        if !both.into_iter().all(|field| description.can_update(field)) {
            return Err(Stop::NotTried("`in_place` does not have both labels and tags"));
        }
        let created = self.create(0).await?;
        let request = UpdateRequest {
            worker: self.reference(0, Some(created.provider_id.clone())),
            labels: BTreeMap::from([("changed".to_owned(), "yes".to_owned())]),
            tags: vec!["changed".to_owned()],
        };
        for _ in 0..2 {
            let updated = self.subject.provider().update(&request).await;
            updated.map_err(|error| format!("update failed: {error}"))?;
        }
        let listed = self.list_until(1).await?.remove(0);
        if listed.labels != request.labels || listed.tags != request.tags {
            let (labels, tags) = (told::json(&listed.labels), told::json(&listed.tags));
            return Err(format!("listed with labels {labels} and tags {tags}").into());
        }
        if listed.provider_id != created.provider_id {
            return Err("the update made another worker".to_owned().into());
        }
        Ok(self.clean().await?)
    }

    pub(super) async fn reset(&self) -> Tried {
        if !self.subject.provider().describe().resets {
            return Err(Stop::NotTried("this provider does not reset workers"));
        }
        let spec = self.subject.spec();
        let worker = self.reference(0, None);
        let absent = ResetRequest { worker, spec: spec.clone(), timeout: CALL_LIMIT };
        match self.subject.provider().reset(&absent).await {
            Err(ProviderError::NotFound(_)) => {}
            answer => {
                return Err(format!("resetting nothing answered {}", told::answer(&answer)).into());
            }
        }
        let created = self.create(0).await?;
        let worker = self.reference(0, Some(created.provider_id.clone()));
        let reset = self
            .subject
            .provider()
            .reset(&ResetRequest { worker, spec, timeout: CALL_LIMIT })
            .await;
        let reset = reset.map_err(|error| format!("reset failed: {error}"))?;
        let listed = self.list_until(1).await?.remove(0);
        for (what, worker) in [("answered", reset), ("listed", listed)] {
            let differences = told::differences(&created, &worker);
            if !differences.is_empty() {
                let how = format!("{what} otherwise than created: {}", differences.join("; "));
                return Err(how.into());
            }
        }
        Ok(self.clean().await?)
    }

    pub(super) async fn abandoned_reset(&self) -> Tried {
        if !self.subject.provider().describe().resets {
            return Err(Stop::NotTried("this provider does not reset workers"));
        }
        let created = self.create(0).await?;
        let worker = self.reference(0, Some(created.provider_id.clone()));
        let request = ResetRequest { worker, spec: self.subject.spec(), timeout: CALL_LIMIT };
        let begun = Instant::now();
        let first = self.subject.provider().reset(&request).await;
        first.map_err(|error| format!("reset failed: {error}"))?;
        for limit in stages(begun.elapsed()) {
            let provider = self.subject.provider();
            let _abandoned = timeout(limit, provider.reset(&request)).await;
            let seen = self.list_until(1).await?.remove(0);
            if seen.provider_id != created.provider_id {
                let id = seen.provider_id;
                return Err(format!("abandoned after {limit:?}, it is {id}").into());
            }
            let again = self.subject.provider().reset(&request).await;
            again.map_err(|error| format!("abandoned after {limit:?}: repeat: {error}"))?;
        }
        self.list_until(1).await?;
        Ok(self.clean().await?)
    }

    pub(super) async fn delete_twice(&self) -> Tried {
        let created = self.create(0).await?;
        self.list_until(1).await?;
        for provider_id in [Some(created.provider_id), None, Some("never-was".to_owned())] {
            self.delete(self.reference(0, provider_id), 1).await?;
        }
        self.list_until(0).await?;
        Ok(self.clean().await?)
    }

    pub(super) async fn next_attempt(&self) -> Tried {
        let first = self.create(0).await?;
        self.list_until(1).await?;
        self.delete(self.reference(0, Some(first.provider_id.clone())), 1).await?;
        self.list_until(0).await?;
        let token = format!("{}-0-2", self.owner);
        let request = CreateRequest { attempt: 2, token, ..self.request(0) };
        let second = self.subject.provider().create(&request).await;
        let second = second.map_err(|error| format!("the second attempt failed: {error}"))?;
        if second.provider_id == first.provider_id {
            return Err("two attempts have one provider id".to_owned().into());
        }
        // A late delete of the first attempt, by its name alone.
        self.delete(self.reference(0, None), 1).await?;
        let left = self.list_until(1).await?;
        if left[0].provider_id != second.provider_id {
            return Err(format!("after it, {} is listed", left[0].provider_id).into());
        }
        Ok(self.clean().await?)
    }

    pub(super) async fn other_id(&self) -> Tried {
        self.create(0).await?;
        self.list_until(1).await?;
        self.delete(self.reference(0, Some("another-id".to_owned())), 1).await?;
        self.list_until(1).await?;
        Ok(self.clean().await?)
    }

    pub(super) async fn not_found(&self) -> Tried {
        let reference = self.reference(0, None);
        match self.subject.provider().get(&reference).await {
            Err(ProviderError::NotFound(_)) => {}
            answer => return Err(format!("get answered {}", told::answer(&answer)).into()),
        }
        if self.subject.provider().describe().in_place.is_empty() {
            return Ok(());
        }
        let (labels, tags) = (BTreeMap::new(), Vec::new());
        let request = UpdateRequest { worker: reference, labels, tags };
        match self.subject.provider().update(&request).await {
            Err(ProviderError::NotFound(_)) => Ok(()),
            answer => Err(format!("update answered {}", told::answer(&answer)).into()),
        }
    }
}
