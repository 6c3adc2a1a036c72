//! [`Ec2Provider`]: the provider trait over EC2's API.
//!
//! The client token decides between two creates of one attempt. Where the token does not tell, because it was used with
//! other parameters or because its instance is gone, the tags do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pool_provider::{
    About, Consistency, CreateRequest, DeleteRequest, DeploymentId, Description, Idempotency,
    InPlaceField, Listing, ObservedWorker, PageToken, ProbeOutcome, ProviderError, UpdateRequest,
    WorkerProvider, WorkerRef,
};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::answer::{Described, Done, Instance, Run};
use crate::client::{Client, Now};
use crate::config::Config;
use crate::refusal::Refusal;
use crate::request::{self, Parameters, add_filter, add_tags};
use crate::tags::{self, Identity};
use crate::{seen, status};

/// How long EC2 may take to answer a call that ends an instance, and to believe it.
const ENDING: Duration = Duration::from_secs(60);
/// How long it may take to learn whose account it is.
const ASKING: Duration = Duration::from_secs(10);
/// How soon it is looked again for what does not show yet.
const LOOK: Duration = Duration::from_millis(500);
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
    /// Instances that EC2 does not know when it is asked: since when, and when that was last.
    unknown: Mutex<BTreeMap<String, (Instant, Instant)>>,
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
        let endpoint = config.endpoint().unwrap_or_default();
        let client = Client::new((region, endpoint), config.profile.clone(), settings.now)?;
        let client = Arc::new(client);
        let statuses = status::Desk::new(Arc::clone(&client));
        Ok(Self { name: settings.name, config, client, statuses, unknown: Mutex::default() })
    }

    /// Asks AWS whose account it is, by the STS at `endpoint`: in another one its workers would look gone. Without an
    /// answer that stays unknown.
    pub async fn ask_account(&mut self, endpoint: &str) {
        match timeout(ASKING, self.client.account(endpoint)).await {
            Ok(Ok(account)) => self.config.account = Some(format!("account {account}")),
            Ok(Err(refusal)) => {
                let why = refusal.text();
                warn!(endpoint, why, "it is not known whose AWS account this is");
            }
            Err(_) => warn!(endpoint, "it is not known whose AWS account this is: no answer"),
        }
    }

    fn settle(&self) -> Duration {
        self.config.settle.get()
    }

    /// Returns the filters that let through what is ours: of this deployment and this provider.
    fn ours(&self, owner: &DeploymentId, states: &[&str]) -> (Parameters, usize) {
        let mut parameters = Parameters::new();
        let by_tag = |key: &str| format!("tag:{key}");
        add_filter(&mut parameters, 1, &by_tag(tags::DEPLOYMENT), &[owner.as_str()]);
        add_filter(&mut parameters, 2, &by_tag(tags::PROVIDER), &[&self.name]);
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
        let described: Described = self.client.call("DescribeInstances", &parameters).await?;
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
        let name = worker.name.to_string();
        add_filter(&mut parameters, next, &format!("tag:{}", tags::WORKER), &[&name]);
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let (instances, next) =
                self.page(&worker.owner, parameters.clone(), token.as_deref()).await?;
            found.extend(instances.into_iter().filter_map(|(own, found)| Some((own?, found))));
            if next.is_none() {
                break;
            }
            if next == token {
                return Err(Refusal::Lost("the listing leads back to its last page".to_owned()));
            }
            token = next;
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
        let until = Instant::now() + self.settle();
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
            if !over.is_empty() || Instant::now() >= until {
                return Err(ProviderError::Spent(why));
            }
            sleep(LOOK).await;
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
        let described: Described = self.client.call("DescribeInstances", &parameters).await?;
        let (instances, _) = described.into_page();
        Ok(instances.into_iter().find(|instance| instance.instance_id == id))
    }

    /// Ends instances by their ids.
    async fn terminate(&self, ids: &BTreeSet<String>) -> Result<(), Refusal> {
        let numbered = (1..).zip(ids).map(|(n, id)| (format!("InstanceId.{n}"), id.clone()));
        let parameters = numbered.collect();
        self.client.call::<Done>("TerminateInstances", &parameters).await.map(|Done {}| ())
    }

    /// Says what it means that EC2 does not know an instance, which it does of one that was created a moment ago as well.
    fn unknown(&self, id: &str) -> ProbeOutcome {
        let now = Instant::now();
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = 2 * self.settle();
        unknown.retain(|_, (_, last)| now.saturating_duration_since(*last) < limit);
        let (since, last) = unknown.entry(id.to_owned()).or_insert((now, now));
        *last = now;
        if now.saturating_duration_since(*since) < self.settle() {
            return ProbeOutcome::Unhealthy(format!("EC2 does not show {id}"));
        }
        ProbeOutcome::Gone(format!("EC2 does not know {id}"))
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
        Description {
            kind: "ec2".to_owned(),
            worker_types: vec!["vm".to_owned()],
            idempotency: Idempotency::Token,
            consistency: Consistency::Eventual,
            settle: self.settle(),
            slowest_delete: ENDING + self.settle(),
            slowest_look: Duration::ZERO,
            in_place: vec![InPlaceField::Labels, InPlaceField::Tags],
            one_host: false,
            tells_ends: false,
            resets: false,
            capacity: None,
            about: About { place: self.config.account.clone(), ..About::refusing(NO_IMAGE) },
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
            _ => Err(refusal.of_change(&doing, place.is_followed)),
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
        let until = Instant::now() + self.settle();
        let (identity, instance) = loop {
            let found = self.of_worker(worker, &ALIVE).await;
            match found.map_err(|refusal| refusal.of_look(&doing))?.pop() {
                Some(found) => break found,
                None if Instant::now() >= until => {
                    return Err(ProviderError::NotFound(worker.name.to_string()));
                }
                // It may have been created a moment ago.
                None => sleep(LOOK).await,
            }
        };
        let (all, gone) = tags::changes(&instance.tag_set, labels, tags);
        let resource = || vec![("ResourceId.1".to_owned(), instance.instance_id.clone())];
        let refused = |refusal: Refusal| refusal.of_change(&doing, false);
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
        let until = Instant::now() + self.settle();
        let mut ended = BTreeSet::new();
        loop {
            let left = self.of_worker(worker, &ALIVE).await;
            let mut left = left.map_err(|refusal| refusal.of_look(&doing))?;
            left.retain(|(identity, _)| {
                worker.provider_id.is_some() || identity.attempt <= request.attempt
            });
            let shown: BTreeSet<String> =
                left.into_iter().map(|(_, instance)| instance.instance_id).collect();
            let mut wanted = shown.clone();
            if let Some(id) = worker.provider_id.as_ref().filter(|_| shown.is_empty()) {
                // One that was created a moment ago may not show, and would run on. One that shows as somebody
                // else's, or as over, is no worker any more.
                match self.instance(id).await.map_err(|refusal| refusal.of_look(&doing))? {
                    Some(found) if !self.is_of(&found, worker) => return Ok(()),
                    Some(found) if found.instance_state.is_over() => return Ok(()),
                    Some(_) | None => drop(wanted.insert(id.clone())),
                }
            }
            let due: BTreeSet<String> = &wanted - &ended;
            if due.is_empty() && shown.is_empty() {
                return Ok(());
            }
            if !due.is_empty() {
                match self.terminate(&due).await {
                    Ok(()) => ended.extend(due),
                    // Once it has not been known for so long, it is gone.
                    Err(refusal) if refusal.is_unknown_instance() => {
                        if shown.is_empty() && Instant::now() >= until {
                            return Ok(());
                        }
                    }
                    Err(refusal) => return Err(refusal.of_change(&doing, false)),
                }
                if shown.is_empty() && ended == wanted {
                    return Ok(());
                }
            }
            if Instant::now() >= until && !shown.is_empty() {
                let why = format!("{doing}: EC2 still shows it");
                return Err(ProviderError::UnknownOutcome(why));
            }
            // What it is told, it may show a while later.
            sleep(LOOK).await;
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
            Some(found) => match status::judge(&found) {
                ProbeOutcome::Gone(why) => {
                    let reason = self.reason(worker).await;
                    let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
                    Ok(ProbeOutcome::Gone(format!("{why}{reason}")))
                }
                outcome => Ok(outcome),
            },
            None => Ok(self.unknown(&id)),
        }
    }
}
