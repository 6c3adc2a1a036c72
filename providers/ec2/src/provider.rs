//! [`Ec2Provider`]: the provider trait over EC2's API.
//!
//! The client token decides between two creates of one attempt. Where the token does not tell, because it was used with
//! other parameters or because its instance is gone, the tags do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pool_provider::{
    About, Consistency, CreateRequest, DeleteRequest, DeploymentId, Description, Idempotency,
    InPlaceField, Listing, ObservedWorker, PageToken, ProbeOutcome, Probes, ProviderError,
    UpdateRequest, WorkerProvider, WorkerRef, marks,
};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::answer::{Described, Done, Instance, Run};
use crate::client::{Client, Now};
use crate::config::{Config, is_region};
use crate::looks::Looks;
use crate::refusal::Refusal;
use crate::request::{self, Parameters, add_filter, add_tags};
use crate::tags::{self, Identity};
use crate::{seen, status};

/// How long EC2 may take to answer a call that ends an instance, and to believe it.
const ENDING: Duration = Duration::from_secs(60);
/// How long it may take to say why an instance has ended.
const EXPLAINING: Duration = Duration::from_millis(500);
/// How many instances that EC2 does not know are remembered, and for how long when there are more.
const MOST_UNKNOWN: usize = 1000;
const FORGOTTEN: Duration = Duration::from_secs(60 * 60);
/// How many instances a page has at most.
const PAGE: &str = "1000";
/// What may still run, or run again.
const ALIVE: [&str; 4] = ["pending", "running", "stopping", "stopped"];
/// No image has this id.
const NO_IMAGE: &str = "ami-00000000000000000";

/// What a provider is told beside its config.
#[derive(Clone)]
pub struct Settings {
    /// The provider's name: two providers of one deployment list their own workers only.
    pub name: String,
    /// Tells what time it is: calls are signed with it.
    pub now: Now,
    /// Where AWS's STS is, which says whose account it is; `None` where there is none to ask.
    pub identity: Option<String>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Runs workers as instances of EC2.
#[derive(Debug)]
pub struct Ec2Provider {
    name: String,
    config: Config,
    client: Arc<Client>,
    statuses: status::Desk,
    /// Instances that EC2 does not know when it is asked, since when.
    unknown: Mutex<BTreeMap<String, Instant>>,
}

impl Ec2Provider {
    /// Builds a provider; connects when it is first asked for something.
    ///
    /// # Errors
    /// When its region is not known, in words.
    pub fn new(config: Config, settings: Settings) -> Result<Self, String> {
        let Some(region) = config.region.clone() else {
            let why = "it has no region: set `region` in its settings, or AWS_REGION (that of a profile is not read)";
            return Err(why.to_owned());
        };
        if !is_region(&region) {
            return Err(format!(
                "`{region}` is no region: `region` in its settings or AWS_REGION is one like eu-central-1"
            ));
        }
        let endpoint = config.endpoint().unwrap_or_default();
        let asks = (settings.identity, settings.now);
        let client = Client::new((region, endpoint), config.profile.clone(), asks)?;
        let client = Arc::new(client);
        let statuses = status::Desk::new(Arc::clone(&client));
        Ok(Self { name: settings.name, config, client, statuses, unknown: Mutex::default() })
    }

    /// Finds out whose account it is, which [`Self::describe`] tells from then on. Where nobody says so it stays unknown,
    /// until a later call finds out.
    ///
    /// # Errors
    /// Why that is not known although there is somebody to ask, in words.
    pub async fn ask_account(&self) -> Result<(), String> {
        self.client.ask_account().await
    }

    fn settle(&self) -> Duration {
        self.config.settle.get()
    }

    /// Returns the filters that let through what is ours: of this deployment and this provider.
    fn ours(&self, owner: &DeploymentId, states: &[&str]) -> (Parameters, usize) {
        let mut parameters = Parameters::new();
        let by_tag = |key: &str| format!("tag:{key}");
        add_filter(&mut parameters, 1, &by_tag(marks::DEPLOYMENT), &[owner.as_str()]);
        add_filter(&mut parameters, 2, &by_tag(marks::PROVIDER), &[&self.name]);
        if states.is_empty() {
            return (parameters, 3);
        }
        add_filter(&mut parameters, 3, "instance-state-name", states);
        (parameters, 4)
    }

    /// Returns a page of what is let through, and who each is as far as its tags say.
    async fn page(
        &self,
        owner: &DeploymentId,
        mut parameters: Parameters,
        token: Option<&str>,
    ) -> Result<(Vec<(Option<Identity>, Instance)>, Option<String>), Refusal> {
        parameters.push(("MaxResults".to_owned(), PAGE.to_owned()));
        parameters.extend(token.map(|token| ("NextToken".to_owned(), token.to_owned())));
        let described: Described = self.client.look("DescribeInstances", &parameters).await?;
        let (instances, next) = described.into_page();
        let whose =
            |instance: Instance| (tags::read(&instance.tag_set, owner, &self.name), instance);
        Ok((instances.into_iter().map(whose).collect(), next))
    }

    /// Returns the instances of one worker in these states, in any when there are none.
    async fn of_worker(
        &self,
        worker: &WorkerRef,
        states: &[&str],
    ) -> Result<Vec<(Identity, Instance)>, Refusal> {
        let (mut parameters, next) = self.ours(&worker.owner, states);
        let (by, value) = match &worker.provider_id {
            // Whatever became of its other tags.
            Some(id) => ("instance-id".to_owned(), id.clone()),
            None => (format!("tag:{}", marks::WORKER), worker.name.to_string()),
        };
        add_filter(&mut parameters, next, &by, &[&value]);
        let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
        let mut token: Option<String> = None;
        loop {
            let (instances, next) =
                self.page(&worker.owner, parameters.clone(), token.as_deref()).await?;
            found.extend(instances.into_iter().filter_map(|(own, found)| Some((own?, found))));
            let Some(next) = next else { break };
            if !seen.insert(next.clone()) {
                return Err(Refusal::Lost("the listing leads back to an earlier page".to_owned()));
            }
            token = Some(next);
        }
        // Whatever the filters let through: nobody else's instance is deleted.
        found.retain(|(own, _)| own.name == worker.name);
        if let Some(id) = &worker.provider_id {
            found.retain(|(_, instance)| instance.instance_id == *id);
        }
        found.sort_by_key(|(identity, _)| identity.attempt);
        Ok(found)
    }

    fn worker(&self, (identity, instance): (Identity, Instance)) -> ObservedWorker {
        seen::worker(identity, &instance, self.config.address)
    }

    /// The attempt's token has made an instance before, which it does not give: the tags tell what became of that.
    async fn by_tags(
        &self,
        request: &CreateRequest,
        why: String,
    ) -> Result<ObservedWorker, ProviderError> {
        let worker = WorkerRef {
            owner: request.owner.clone(),
            name: request.name.clone(),
            provider_id: None,
        };
        let mut looks = Looks::new(self.settle());
        loop {
            let found = self.of_worker(&worker, &[]).await.map_err(|refusal| {
                ProviderError::UnknownOutcome(format!("{why}; then: {}", refusal.text()))
            })?;
            let of_attempt = found.into_iter().filter(|(own, _)| own.attempt == request.attempt);
            let (over, alive): (Vec<_>, Vec<_>) =
                of_attempt.partition(|(_, instance)| instance.instance_state.is_over());
            if let Some(found) = alive.into_iter().next() {
                return Ok(self.worker(found));
            }
            // Whatever the token made shows by now, or is gone for so long that it is not shown any more.
            if !over.is_empty() || !looks.again().await {
                return Err(ProviderError::Spent(why));
            }
        }
    }

    /// Returns whether an instance may be this worker: that of which we know the id, unless its tags say otherwise.
    fn is_of(&self, instance: &Instance, worker: &WorkerRef) -> bool {
        tags::may_be(&instance.tag_set, &worker.owner, &self.name, &worker.name)
    }

    /// Returns an instance by its id, whosever it is.
    async fn instance(&self, id: &str) -> Result<Option<Instance>, Refusal> {
        let mut parameters = Parameters::new();
        add_filter(&mut parameters, 1, "instance-id", &[id]);
        let described: Described = self.client.look("DescribeInstances", &parameters).await?;
        let (instances, _) = described.into_page();
        Ok(instances.into_iter().find(|instance| instance.instance_id == id))
    }

    /// Ends instances by their ids.
    async fn terminate(&self, ids: &BTreeSet<String>) -> Result<(), Refusal> {
        let numbered = (1..).zip(ids).map(|(n, id)| (format!("InstanceId.{n}"), id.clone()));
        let parameters = numbered.collect();
        self.client.call::<Done>("TerminateInstances", &parameters).await.map(|Done {}| ())
    }

    fn unknown(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that EC2 does not know an instance, and returns whether that has been so for long enough to be believed: it
    /// is so of one that was created a moment ago as well.
    fn is_gone(&self, id: &str) -> bool {
        let mut unknown = self.unknown();
        let since = *unknown.entry(id.to_owned()).or_insert_with(Instant::now);
        if unknown.len() > MOST_UNKNOWN {
            unknown.retain(|_, since| since.elapsed() < FORGOTTEN);
        }
        since.elapsed() >= self.settle()
    }

    /// Ends an instance that no listing shows: it may have been created a moment ago, and would run on. Returns whether
    /// there is nothing left to end; it may show later otherwise.
    async fn end_unshown(
        &self,
        worker: &WorkerRef,
        id: &str,
        doing: &str,
    ) -> Result<bool, ProviderError> {
        let found = self.instance(id).await.map_err(|refusal| refusal.of_look(doing))?;
        let is_known = found.is_some();
        match found {
            Some(found) if found.instance_state.is_over() => return Ok(true),
            // EC2 may show an instance before its tags.
            Some(found) if found.tag_set.is_empty() => return Ok(false),
            // It is somebody else's by now.
            Some(found) if !self.is_of(&found, worker) => return Ok(true),
            Some(_) | None => {}
        }
        match self.terminate(&BTreeSet::from([id.to_owned()])).await {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.is_unknown_instance() => Ok(self.is_gone(id)),
            // A policy that asks for our tags refuses what has none because it is not there.
            Err(refusal) if !is_known && refusal.code() == Some("UnauthorizedOperation") => {
                warn!(
                    id,
                    why = refusal.text(),
                    "EC2 does not show an instance that is to be ended"
                );
                Ok(self.is_gone(id))
            }
            Err(refusal) => Err(refusal.of_change(doing)),
        }
    }

    /// Returns why an instance has ended, as EC2 tells it.
    async fn reason(&self, worker: &WorkerRef) -> Option<String> {
        let found = self.of_worker(worker, &[]).await.ok()?;
        let reason = found.into_iter().next()?.1.state_reason?;
        Some(reason.message).filter(|message| !message.is_empty())
    }
}

impl WorkerProvider for Ec2Provider {
    fn describe(&self) -> Description {
        let place = self.client.account().map(|account| format!("account {account}"));
        Description {
            kind: "ec2".to_owned(),
            worker_types: vec!["vm".to_owned()],
            idempotency: Idempotency::Token,
            consistency: Consistency::Eventual,
            settle: self.settle(),
            // It may take as long to show as to be gone.
            slowest_delete: ENDING + 2 * self.settle(),
            slowest_look: Duration::ZERO,
            in_place: vec![InPlaceField::Labels, InPlaceField::Tags],
            one_host: false,
            tells_ends: false,
            probes: Probes::Service,
            resets: false,
            capacity: None,
            about: About { place, ..About::refusing(NO_IMAGE) },
        }
    }

    async fn create(&self, request: &CreateRequest) -> Result<ObservedWorker, ProviderError> {
        let attributes = request::attributes(&request.spec)?;
        let place = request::place(
            &request.spec,
            &attributes,
            &self.config,
            (request.name.slot.0, request.passed_over),
        )?;
        let parameters =
            request::parameters(request, &attributes, (&self.config, &self.name), &place)?;
        let at = place.subnet.as_ref().map_or(String::new(), |subnet| format!(" in {subnet}"));
        let doing = format!("running a {}{at}", place.instance_type);
        let refusal = match self.client.call::<Run>("RunInstances", &parameters).await {
            Ok(run) => {
                let nothing = || ProviderError::UnknownOutcome(format!("{doing}: no instance"));
                let instance = run.into_instance().ok_or_else(nothing)?;
                if instance.instance_state.is_over() {
                    let why = format!("{doing}: {} is over", instance.instance_id);
                    return Err(ProviderError::Spent(why));
                }
                let identity = tags::read(&instance.tag_set, &request.owner, &self.name);
                // What the call was to write, where the answer does not repeat it.
                let identity = identity.or_else(|| {
                    let written = tags::write(request, &self.name);
                    tags::read(&written, &request.owner, &self.name)
                });
                return Ok(self.worker((identity.ok_or_else(nothing)?, instance)));
            }
            Err(refusal) => refusal,
        };
        let why = || format!("{doing}: {}", refusal.text());
        match refusal.code() {
            Some("IdempotentInstanceTerminated") => Err(ProviderError::Spent(why())),
            Some("IdempotentParameterMismatch") => self.by_tags(request, why()).await,
            _ => Err(refusal.of_create(&doing, place.others)),
        }
    }

    async fn list(
        &self,
        owner: &DeploymentId,
        page: Option<&PageToken>,
    ) -> Result<Listing, ProviderError> {
        let (parameters, _) = self.ours(owner, &ALIVE);
        let token = page.map(|page| page.0.as_str());
        let (found, next) = self
            .page(owner, parameters, token)
            .await
            .map_err(|refusal| refusal.of_look("listing instances"))?;
        let (mut workers, mut complete) = (Vec::new(), true);
        for (identity, instance) in found {
            if let Some(identity) = identity {
                workers.push(self.worker((identity, instance)));
                continue;
            }
            // It may be any worker: none counts as missing until that is mended.
            let id = &instance.instance_id;
            warn!(id, "an instance of this deployment has lost tags that say which worker it is");
            complete = false;
        }
        Ok(Listing { workers, next: next.map(PageToken), complete })
    }

    async fn get(&self, worker: &WorkerRef) -> Result<ObservedWorker, ProviderError> {
        let found = self
            .of_worker(worker, &ALIVE)
            .await
            .map_err(|refusal| refusal.of_look(&format!("looking for {}", worker.name)))?;
        let latest = found.into_iter().next_back().map(|found| self.worker(found));
        latest.ok_or_else(|| ProviderError::NotFound(worker.name.to_string()))
    }

    async fn update(&self, request: &UpdateRequest) -> Result<ObservedWorker, ProviderError> {
        let UpdateRequest { worker, labels, tags } = request;
        let doing = format!("tagging {}", worker.name);
        if let Some(why) = tags::wrong_tags(labels, tags) {
            return Err(ProviderError::InvalidSpec(format!("{doing}: {why}")));
        }
        let mut looks = Looks::new(self.settle());
        let (identity, instance) = loop {
            let found = self.of_worker(worker, &ALIVE).await;
            if let Some(found) = found.map_err(|refusal| refusal.of_look(&doing))?.pop() {
                break found;
            }
            // It may have been created a moment ago.
            if !looks.again().await {
                return Err(ProviderError::NotFound(worker.name.to_string()));
            }
        };
        let (all, gone) = tags::changes(&instance.tag_set, labels, tags);
        let resource = || vec![("ResourceId.1".to_owned(), instance.instance_id.clone())];
        let refused = |refusal: Refusal| refusal.of_change(&doing);
        // First: there is room for so many tags only.
        if !gone.is_empty() {
            let mut parameters = resource();
            let keys = (1..).zip(gone).map(|(number, key)| (format!("Tag.{number}.Key"), key));
            parameters.extend(keys);
            self.client.call::<Done>("DeleteTags", &parameters).await.map_err(refused)?;
        }
        // All of them: what is listed may be what was there before the last update.
        if !all.is_empty() {
            let mut parameters = resource();
            add_tags(&mut parameters, "Tag", &all);
            self.client.call::<Done>("CreateTags", &parameters).await.map_err(refused)?;
        }
        let identity = Identity { labels: labels.clone(), tags: tags.clone(), ..identity };
        Ok(self.worker((identity, instance)))
    }

    async fn delete(&self, request: &DeleteRequest) -> Result<(), ProviderError> {
        let worker = &request.worker;
        let doing = format!("terminating {}", worker.name);
        let mut looks = Looks::new(self.settle());
        let mut ended = BTreeSet::new();
        loop {
            let left = self.of_worker(worker, &ALIVE).await;
            let mut left = left.map_err(|refusal| refusal.of_look(&doing))?;
            left.retain(|(identity, _)| {
                worker.provider_id.is_some() || identity.attempt <= request.attempt
            });
            let shown: BTreeSet<String> =
                left.into_iter().map(|(_, instance)| instance.instance_id).collect();
            if shown.is_empty() {
                let Some(id) = worker.provider_id.as_ref().filter(|_| ended.is_empty()) else {
                    return Ok(());
                };
                if self.end_unshown(worker, id, &doing).await? || !looks.again().await {
                    return Ok(());
                }
                continue;
            }
            let due: BTreeSet<String> = &shown - &ended;
            if !due.is_empty() {
                match self.terminate(&due).await {
                    Ok(()) => {
                        ended.extend(due);
                        looks = Looks::new(self.settle());
                        continue;
                    }
                    // One of its servers knows it, another one does not.
                    Err(refusal) if refusal.is_unknown_instance() => {}
                    Err(refusal) => return Err(refusal.of_change(&doing)),
                }
            }
            // What it is told, it may show a while later.
            if !looks.again().await {
                let why = format!("{doing}: EC2 still shows it");
                return Err(ProviderError::UnknownOutcome(why));
            }
        }
    }

    async fn probe(&self, worker: &WorkerRef) -> Result<ProbeOutcome, ProviderError> {
        let id = match &worker.provider_id {
            Some(id) => id.clone(),
            None => match self.get(worker).await {
                Ok(found) => found.provider_id,
                Err(ProviderError::NotFound(_)) => {
                    return Ok(ProbeOutcome::Gone("EC2 has no instance of it".to_owned()));
                }
                Err(error) => return Err(error),
            },
        };
        match self.statuses.ask(&id).await? {
            Some(found) => {
                self.unknown().remove(&id);
                match status::judge(&found)? {
                    ProbeOutcome::Gone(why) => {
                        // It is gone, whether anybody says why or not.
                        let reason = timeout(EXPLAINING, self.reason(worker)).await.ok().flatten();
                        let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
                        Ok(ProbeOutcome::Gone(format!("{why}{reason}")))
                    }
                    outcome => Ok(outcome),
                }
            }
            None if self.is_gone(&id) => Ok(ProbeOutcome::Gone(format!("EC2 does not know {id}"))),
            None => Ok(ProbeOutcome::Unhealthy(format!("EC2 does not show {id}"))),
        }
    }
}
