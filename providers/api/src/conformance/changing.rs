//! Rules about what is done to a worker that exists, and to one that does not.

use std::collections::BTreeMap;

use tokio::time::{Instant, timeout};

use super::creating::stages;
use super::{CALL_LIMIT, Subject, Trial};
use crate::error::ProviderError;
use crate::provider::{
    CreateRequest, DeleteRequest, InPlaceField, ResetRequest, UpdateRequest, WorkerProvider as _,
};
use crate::spec::ObservedWorker;

impl<S: Subject> Trial<'_, S> {
    pub(super) async fn update_in_place(&self) -> Result<bool, String> {
        let description = self.subject.provider().describe();
        let both = [InPlaceField::Labels, InPlaceField::Tags];
        if !both.into_iter().all(|field| description.can_update(field)) {
            return Ok(false);
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
            return Err(format!(
                "listed with labels {:?} and tags {:?}",
                listed.labels, listed.tags
            ));
        }
        if listed.provider_id != created.provider_id {
            return Err("the update made another worker".to_owned());
        }
        self.clean().await.map(|()| true)
    }

    pub(super) async fn reset(&self) -> Result<bool, String> {
        if !self.subject.provider().describe().resets {
            return Ok(false);
        }
        let spec = self.subject.spec();
        let worker = self.reference(0, None);
        let absent = ResetRequest { worker, spec: spec.clone(), timeout: CALL_LIMIT };
        match self.subject.provider().reset(&absent).await {
            Err(ProviderError::NotFound(_)) => {}
            answer => return Err(format!("resetting nothing answered {answer:?}")),
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
            let expected = ObservedWorker {
                addresses: worker.addresses.clone(),
                attributes: worker.attributes.clone(),
                status: worker.status,
                ..created.clone()
            };
            if worker != expected {
                return Err(format!("{what} as {worker:?}, created as {created:?}"));
            }
        }
        self.clean().await.map(|()| true)
    }

    pub(super) async fn abandoned_reset(&self) -> Result<bool, String> {
        if !self.subject.provider().describe().resets {
            return Ok(false);
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
                return Err(format!("abandoned after {limit:?}, it is {}", seen.provider_id));
            }
            let again = self.subject.provider().reset(&request).await;
            again.map_err(|error| format!("abandoned after {limit:?}: repeat: {error}"))?;
        }
        self.list_until(1).await?;
        self.clean().await.map(|()| true)
    }

    pub(super) async fn delete_twice(&self) -> Result<bool, String> {
        let created = self.create(0).await?;
        for provider_id in [Some(created.provider_id), None, Some("never-was".to_owned())] {
            let worker = self.reference(0, provider_id);
            match self.subject.provider().delete(&DeleteRequest { worker, attempt: 1 }).await {
                Ok(()) | Err(ProviderError::NotFound(_)) => {}
                Err(error) => return Err(format!("delete failed: {error}")),
            }
        }
        self.list_until(0).await.map(|_| true)
    }

    pub(super) async fn next_attempt(&self) -> Result<bool, String> {
        let first = self.create(0).await?;
        let worker = self.reference(0, Some(first.provider_id.clone()));
        let deleted = self.subject.provider().delete(&DeleteRequest { worker, attempt: 1 }).await;
        deleted.map_err(|error| format!("delete failed: {error}"))?;
        self.list_until(0).await?;
        let token = format!("{}-0-2", self.owner);
        let request = CreateRequest { attempt: 2, token, ..self.request(0) };
        let second = self.subject.provider().create(&request).await;
        let second = second.map_err(|error| format!("the second attempt failed: {error}"))?;
        if second.provider_id == first.provider_id {
            return Err("two attempts have one provider id".to_owned());
        }
        // A late delete of the first attempt, by its name alone.
        let worker = self.reference(0, None);
        let late = self.subject.provider().delete(&DeleteRequest { worker, attempt: 1 }).await;
        late.or_else(|error| match error {
            ProviderError::NotFound(_) => Ok(()),
            error => Err(format!("a late delete of the first attempt failed: {error}")),
        })?;
        let left = self.list_until(1).await?;
        if left[0].provider_id != second.provider_id {
            return Err(format!("after it, {} is listed", left[0].provider_id));
        }
        self.clean().await.map(|()| true)
    }

    pub(super) async fn other_id(&self) -> Result<bool, String> {
        self.create(0).await?;
        self.list_until(1).await?;
        let worker = self.reference(0, Some("another-id".to_owned()));
        match self.subject.provider().delete(&DeleteRequest { worker, attempt: 1 }).await {
            Ok(()) | Err(ProviderError::NotFound(_)) => {}
            Err(error) => return Err(format!("delete failed: {error}")),
        }
        self.list_until(1).await?;
        self.clean().await.map(|()| true)
    }

    pub(super) async fn not_found(&self) -> Result<bool, String> {
        let reference = self.reference(0, None);
        match self.subject.provider().get(&reference).await {
            Err(ProviderError::NotFound(_)) => {}
            answer => return Err(format!("get answered {answer:?}")),
        }
        if self.subject.provider().describe().in_place.is_empty() {
            return Ok(true);
        }
        let (labels, tags) = (BTreeMap::new(), Vec::new());
        let request = UpdateRequest { worker: reference, labels, tags };
        match self.subject.provider().update(&request).await {
            Err(ProviderError::NotFound(_)) => Ok(true),
            answer => Err(format!("update answered {answer:?}")),
        }
    }
}
