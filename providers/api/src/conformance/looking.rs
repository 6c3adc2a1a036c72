//! Rules about listings and probes: what is seen is all there is, and nobody else's.

use std::collections::BTreeSet;

use tokio::time::{sleep, timeout};

use super::told::names;
use super::{PATIENCE, PAUSE, Stop, Subject, Trial, Tried};
use crate::error::ProviderError;
use crate::provider::WorkerProvider as _;
use crate::spec::ProbeOutcome;

impl<S: Subject> Trial<'_, S> {
    pub(super) async fn scoped(&self, stranger: &Self) -> Tried {
        self.create(0).await?;
        self.list_until(1).await?;
        let seen = stranger.list().await?;
        if !seen.is_empty() {
            return Err(format!("another deployment sees {}", names(&seen)).into());
        }
        // A stranger's delete of the same name must not reach ours.
        stranger.delete(stranger.reference(0, None), 1).await?;
        self.list_until(1).await?;
        Ok(self.clean().await?)
    }

    pub(super) async fn health(&self) -> Tried {
        let provider = self.subject.provider();
        let created = self.create(0).await?;
        let worker = self.reference(0, Some(created.provider_id));
        let probing = async {
            loop {
                match provider.probe(&worker).await {
                    Ok(ProbeOutcome::Healthy) => return Ok(()),
                    Ok(ProbeOutcome::Unhealthy(_)) => sleep(PAUSE).await,
                    Ok(ProbeOutcome::Gone(why)) => {
                        return Err(format!("a worker that runs is probed as gone: {why}"));
                    }
                    Err(error) => {
                        return Err(format!("a probe of a worker that runs failed: {error}"));
                    }
                }
            }
        };
        let outcome = timeout(provider.describe().settle + PATIENCE, probing).await;
        outcome.unwrap_or_else(|_| Err("a worker that runs never became healthy".to_owned()))?;
        self.list_until(1).await?;
        self.clean().await?;
        let gone = async {
            loop {
                match provider.probe(&worker).await {
                    Ok(ProbeOutcome::Gone(_)) | Err(ProviderError::NotFound(_)) => return Ok(()),
                    // What a listing shows late may be known late here too.
                    Ok(_) => sleep(PAUSE).await,
                    Err(error) => {
                        return Err(format!("a probe of a deleted worker failed: {error}"));
                    }
                }
            }
        };
        let limit = provider.describe().lag() + PATIENCE;
        let outcome = timeout(limit, gone).await;
        Ok(outcome.unwrap_or_else(|_| Err("a deleted worker was never gone".to_owned()))?)
    }

    pub(super) async fn whole_listing(&self) -> Tried {
        for slot in 0..5 {
            self.create(slot).await?;
        }
        let listed = self.list_until(5).await?;
        let names: BTreeSet<String> = listed.iter().map(|worker| worker.name.to_string()).collect();
        let ids: BTreeSet<&String> = listed.iter().map(|worker| &worker.provider_id).collect();
        if names.len() != 5 || ids.len() != 5 {
            return Err(format!("a worker is listed twice: {}", super::told::names(&listed)).into());
        }
        Ok(self.clean().await?)
    }

    pub(super) async fn incomplete(&self) -> Tried {
        self.create(0).await?;
        self.list_until(1).await?;
        if !self.subject.hide_from_next_listing() {
            self.clean().await?;
            return Err(Stop::NotTried("nothing can be hidden from a listing here"));
        }
        let listing = self.subject.provider().list(&self.owner, None).await;
        let listing = listing.map_err(|error| format!("list failed: {error}"))?;
        if listing.complete && listing.workers.is_empty() {
            return Err("a listing without the worker says that it is complete".to_owned().into());
        }
        Ok(self.clean().await?)
    }
}
