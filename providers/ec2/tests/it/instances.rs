//! What an instance is made with, how it is listed, judged, tagged and ended: as boto3 sees it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pool_ec2::{Address, Config};
use pool_provider::{
    DeleteRequest, HumanDuration, ObservedStatus, ProbeOutcome, ProviderError, Slot, UpdateRequest,
    WorkerName, WorkerProvider as _,
};
use serde_json::{Value, json};

use crate::ground::{Ground, IMAGE, provider_with, reference, request, spec};

#[tokio::test]
async fn an_instance_is_made_as_asked_for_in_one_call() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let network = ground.witness(&["network"]);
    let subnets: Vec<String> = serde_json::from_value(network["subnets"].clone()).unwrap();
    let group = network["group"].as_str().unwrap();
    let profile = network["profile"].as_str().unwrap();
    let mut request = request("made");
    request.name.slot = Slot(3);
    let script = "#!/bin/sh\necho ü\n";
    request.spec = spec(&json!({
        "instance_types": ["c7i.large"], "subnets": subnets, "security_groups": [group],
        "key_name": "ci", "instance_profile": profile, "user_data": script,
        "market": "spot",
    }));
    let worker = ground.provider().create(&request).await.unwrap();

    let seen = ground.seen(&request.owner);
    assert_eq!(seen.len(), 1);
    let seen = &seen[0];
    assert_eq!(seen["InstanceId"], worker.provider_id.as_str());
    assert_eq!(seen["ImageId"], IMAGE);
    assert_eq!(seen["InstanceType"], "c7i.large");
    // Slot 3 begins with the second of two subnets.
    assert_eq!(seen["SubnetId"], subnets[1].as_str());
    assert_eq!(seen["SecurityGroups"], json!([group]));
    assert_eq!(seen["KeyName"], "ci");
    assert_eq!(seen["Profile"], profile);
    assert_eq!(seen["InstanceLifecycle"], "spot");
    assert_eq!(seen["Tags"]["pool.worker"], "t-3-1");
    assert_eq!(seen["Tags"]["Name"], format!("t-3-1-{}", request.owner.suffix()));
    assert_eq!(seen["Tags"]["pool.label.os"], "linux");
    assert_eq!(ground.witness(&["userdata", &worker.provider_id]), script);

    let calls = ground.calls("RunInstances").await;
    assert_eq!(calls.len(), 1);
    let sent = &calls[0]["parameters"];
    for (name, value) in [
        ("ClientToken", "made-1"),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("MetadataOptions.HttpTokens", "required"),
        ("InstanceInitiatedShutdownBehavior", "terminate"),
        ("IamInstanceProfile.Arn", profile),
        ("InstanceMarketOptions.SpotOptions.SpotInstanceType", "one-time"),
        ("UserData", "IyEvYmluL3NoCmVjaG8gw7wK"),
    ] {
        assert_eq!(sent[name], value, "{name}");
    }
    assert!(ground.calls("CreateTags").await.is_empty(), "tags are in the same call");

    let shown = &worker.attributes;
    assert_eq!(shown["instance_id"], worker.provider_id);
    assert_eq!(shown["instance_type"], "c7i.large");
    assert_eq!(shown["zone"], "eu-west-1b");
    assert_eq!(shown["market"], "spot");
    assert_eq!(worker.addresses[0], seen["PrivateIpAddress"].as_str().unwrap());
    assert_eq!(worker.tags, ["z", "a"]);
}

#[tokio::test]
async fn metadata_tokens_are_optional_only_where_that_is_said() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    for (owner, attributes, expected) in [
        ("imds-v2", json!({}), "required"),
        ("imds-v1", json!({ "metadata_tokens": "optional" }), "optional"),
    ] {
        let mut request = request(owner);
        request.spec = spec(&attributes);
        ground.provider().create(&request).await.unwrap();
        assert_eq!(ground.seen(&request.owner)[0]["HttpTokens"], expected);
    }
}

#[tokio::test]
async fn the_address_that_comes_first_is_the_one_that_is_asked_for() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let request = request("address");
    ground.provider().create(&request).await.unwrap();
    let seen = ground.seen(&request.owner).remove(0);
    let worker = reference(&request, None);
    for (address, first, last) in [
        (Address::Private, "PrivateIpAddress", "PublicIpAddress"),
        (Address::Public, "PublicIpAddress", "PrivateIpAddress"),
    ] {
        let config = Config { address, ..ground.config.clone() };
        let found = provider_with(config).get(&worker).await.unwrap();
        assert_eq!(found.addresses, [seen[first].as_str().unwrap(), seen[last].as_str().unwrap()]);
        assert_eq!(found.attributes["public_ip"], seen["PublicIpAddress"].as_str().unwrap());
    }
}

#[tokio::test]
async fn labels_and_tags_change_in_place_and_others_tags_stay() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let request = request("update");
    let created = ground.provider().create(&request).await.unwrap();
    ground.witness(&["tag", &created.provider_id, "CostCenter", "42"]);
    let update = UpdateRequest {
        worker: reference(&request, Some(&created.provider_id)),
        labels: [("os".to_owned(), "mac".to_owned()), ("new".to_owned(), String::new())].into(),
        tags: ["a", "b", "a"].map(str::to_owned).to_vec(),
    };
    let updated = ground.provider().update(&update).await.unwrap();
    assert_eq!((&updated.labels, &updated.tags), (&update.labels, &update.tags));
    let listed = ground.provider().list(&request.owner, None).await.unwrap().workers.remove(0);
    assert_eq!((&listed.labels, &listed.tags), (&update.labels, &update.tags));
    assert_eq!(listed.provider_id, created.provider_id);
    let tags = &ground.seen(&request.owner)[0]["Tags"];
    assert_eq!(tags["CostCenter"], "42");
    assert_eq!(tags["pool.label.os"], "mac");
    assert_eq!(tags["pool.tag.z"], Value::Null);

    // A listing may be older than the last update: what is asked for is written, whatever it shows.
    ground.faults(json!({})).await;
    ground.provider().update(&update).await.unwrap();
    assert_eq!(ground.calls("CreateTags").await.len(), 1);
    assert!(ground.calls("DeleteTags").await.is_empty());
}

#[tokio::test]
async fn an_instance_that_does_not_show_yet_is_ended_by_its_id() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    ground.faults(json!({ "late_ms": 500 })).await;
    let request = request("unseen");
    let created = ground.provider().create(&request).await.unwrap();
    let delete =
        DeleteRequest { worker: reference(&request, Some(&created.provider_id)), attempt: 1 };
    ground.provider().delete(&delete).await.unwrap();
    tokio::time::sleep(ground.config.settle.get()).await;
    assert!(ground.seen(&request.owner).is_empty(), "it would run on");
    // What has not been known for long is gone: that is no error.
    let mut never = delete.clone();
    never.worker.provider_id = Some("i-00000000000000000".to_owned());
    ground.provider().delete(&never).await.unwrap();
}

#[tokio::test]
async fn an_instance_that_somebody_took_our_tags_off_is_theirs() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let request = request("taken");
    let created = ground.provider().create(&request).await.unwrap();
    ground.witness(&["untag", &created.provider_id, "pool.deployment"]);
    ground.faults(json!({})).await;
    let delete =
        DeleteRequest { worker: reference(&request, Some(&created.provider_id)), attempt: 1 };
    ground.provider().delete(&delete).await.unwrap();
    assert!(ground.calls("TerminateInstances").await.is_empty());
}

#[tokio::test]
async fn nobody_elses_instance_is_ended_whatever_a_listing_shows() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let (own, mut other) = (request("filters"), request("filters"));
    other.name = WorkerName { slot: Slot(1), ..other.name };
    other.token = "filters-other".to_owned();
    let stranger = request("stranger");
    for one in [&own, &other, &stranger] {
        ground.provider().create(one).await.unwrap();
    }
    ground.faults(json!({ "no_filters": true })).await;
    let delete = DeleteRequest { worker: reference(&own, None), attempt: 1 };
    // It ends what it should, and says that this still shows: states were filtered for as well.
    assert!(ground.provider().delete(&delete).await.unwrap_err().is_unknown());
    let listed = ground.provider().list(&own.owner, None).await.unwrap();
    assert!(listed.workers.iter().all(|one| one.name.pool == own.name.pool));
    assert_eq!(ground.seen(&own.owner)[0]["Tags"]["pool.worker"], "t-1-1");
    assert_eq!(ground.seen(&stranger.owner).len(), 1);
}

#[tokio::test]
async fn an_instance_that_lost_its_tags_keeps_a_listing_from_being_whole() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let request = request("untagged");
    let created = ground.provider().create(&request).await.unwrap();
    assert!(ground.provider().list(&request.owner, None).await.unwrap().complete);
    // It is still known which worker it is, and that it is not as it was made.
    ground.witness(&["untag", &created.provider_id, "pool.attempt"]);
    ground.witness(&["untag", &created.provider_id, "pool.spec-hash"]);
    ground.witness(&["untag", &created.provider_id, "pool.worker"]);
    let worker = reference(&request, Some(&created.provider_id));
    assert_eq!(ground.provider().get(&worker).await.unwrap().name, request.name);
    let update = UpdateRequest { worker, labels: [].into(), tags: Vec::new() };
    ground.provider().update(&update).await.unwrap();
    let listing = ground.provider().list(&request.owner, None).await.unwrap();
    assert!(listing.complete);
    assert_eq!(
        (&listing.workers[0].name, listing.workers[0].spec_hash.as_str()),
        (&request.name, "")
    );
    // Now it may be any.
    ground.witness(&["untag", &created.provider_id, "pool.slot"]);
    let listing = ground.provider().list(&request.owner, None).await.unwrap();
    assert_eq!((listing.workers.len(), listing.complete), (0, false));
    // It is ours all the same: whoever knows its id can end it.
    let delete =
        DeleteRequest { worker: reference(&request, Some(&created.provider_id)), attempt: 1 };
    ground.provider().delete(&delete).await.unwrap();
    assert!(ground.seen(&request.owner).is_empty());
}

#[tokio::test]
async fn what_is_gone_is_deleted_although_a_policy_asks_for_its_tags() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let request = request("gone");
    ground.faults(json!({ "by_policy": true })).await;
    let worker = reference(&request, Some("i-0123456789abcdef0"));
    ground.provider().delete(&DeleteRequest { worker, attempt: 1 }).await.unwrap();
    assert!(ground.calls("TerminateInstances").await.len() > 1, "it may only not show yet");
}

#[tokio::test]
async fn an_instance_that_does_not_show_its_tags_yet_is_ended_when_it_does() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let request = request("bare");
    let provider =
        provider_with(Config { settle: HumanDuration::from_secs(20), ..ground.config.clone() });
    let created = provider.create(&request).await.unwrap();
    ground.faults(json!({ "tags_late_ms": 1_000 })).await;
    let worker = reference(&request, Some(&created.provider_id));
    provider.delete(&DeleteRequest { worker, attempt: 1 }).await.unwrap();
    assert!(ground.seen(&request.owner).is_empty());
}

#[tokio::test]
async fn a_status_call_that_hangs_holds_up_no_other_and_says_nothing_of_its_worker() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let provider = Arc::new(ground.provider());
    let request = request("hangs");
    let created = provider.create(&request).await.unwrap();
    let worker = reference(&request, Some(&created.provider_id));
    ground.faults(json!({ "latency_ms": { "DescribeInstanceStatus": 600_000 } })).await;
    let hanging = tokio::spawn({
        let (provider, worker) = (Arc::clone(&provider), worker.clone());
        async move { provider.probe(&worker).await }
    });
    while ground.calls("DescribeInstanceStatus").await.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ground.faults(json!({})).await;
    assert_eq!(provider.probe(&worker).await, Ok(ProbeOutcome::Healthy));
    assert!(!hanging.is_finished());
    let given_up = hanging.await.unwrap().unwrap_err();
    assert_eq!(given_up.code(), "transient");
}

#[tokio::test]
async fn probes_share_calls_and_tell_what_became_of_an_instance() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let provider = ground.provider();
    let mut workers = Vec::new();
    let first = request("probes");
    for slot in 0..4 {
        let mut request = first.clone();
        request.name = WorkerName { slot: Slot(slot), ..request.name };
        request.token = format!("probes-{slot}");
        let created = provider.create(&request).await.unwrap();
        assert_eq!(created.status, ObservedStatus::Starting);
        workers.push(reference(&request, Some(&created.provider_id)));
    }
    let id = |slot: usize| workers[slot].provider_id.clone().unwrap();
    ground.witness(&["stop", &id(1)]);
    ground.witness(&["terminate", &id(2)]);
    let mut stranger = workers[3].clone();
    stranger.provider_id = Some("i-00000000000000000".to_owned());
    workers.push(stranger);
    ground.faults(json!({})).await;
    let asked = workers.iter().map(|worker| provider.probe(worker));
    let mut told = Vec::new();
    for outcome in futures_util::future::join_all(asked).await {
        told.push(match outcome.unwrap() {
            ProbeOutcome::Healthy => "healthy".to_owned(),
            ProbeOutcome::Unhealthy(why) => format!("unhealthy: {why}"),
            ProbeOutcome::Gone(why) => format!("gone: {why}"),
        });
    }
    assert_eq!(told[0], "healthy");
    assert_eq!(told[1], "unhealthy: its instance is stopped");
    assert!(told[2].starts_with("gone: its instance is terminated"), "{}", told[2]);
    assert!(told[2].contains("User initiated"), "AWS says why: {}", told[2]);
    assert_eq!(told[3], "healthy");
    // It may have been created a moment ago: gone is what stays unknown.
    assert_eq!(told[4], "unhealthy: EC2 does not show i-00000000000000000");
    // One for all five, and one more without the one that is not known.
    assert_eq!(ground.calls("DescribeInstanceStatus").await.len(), 2);
    tokio::time::sleep(ground.config.settle.get()).await;
    let gone = ProbeOutcome::Gone("EC2 does not know i-00000000000000000".to_owned());
    assert_eq!(provider.probe(&workers[4]).await.unwrap(), gone);
}

#[tokio::test]
async fn what_cannot_be_an_instance_is_refused_before_any_call() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let refused = async |change: fn(&mut pool_provider::CreateRequest)| {
        let mut request = request("refused");
        change(&mut request);
        let error = ground.provider().create(&request).await.unwrap_err();
        assert!(matches!(error, ProviderError::InvalidSpec(_)), "{error}");
        error.to_string()
    };
    let told = refused(|request| request.spec.command = vec!["sleep".into()]).await;
    assert!(told.contains("its `user_data` says what it runs"), "{told}");
    let told = refused(|request| {
        request.spec.environment.insert("A".into(), "b".into());
    })
    .await;
    assert!(told.contains("no environment"), "{told}");
    let told = refused(|request| {
        request.spec.labels.insert("k".repeat(200), String::new());
    })
    .await;
    assert!(told.contains("longer than 117 characters"), "{told}");
    let told = refused(|request| request.token = "t".repeat(65)).await;
    assert!(told.contains("at most 64 ASCII characters"), "{told}");
    let told = refused(|request| {
        request.spec = spec(&json!({ "market": "auction" }));
    })
    .await;
    assert!(told.contains("worker_config.ec2: unknown variant `auction`"), "{told}");
    assert!(ground.calls("RunInstances").await.is_empty());
}

#[tokio::test]
async fn a_listing_of_a_thousand_is_one_call() {
    let Some(ground) = Ground::new("sa-east-1") else { return };
    let owner = request("thousand").owner;
    ground.witness(&["many", "1000", owner.as_str()]);
    ground.faults(json!({})).await;
    let listing = ground.provider().list(&owner, None).await.unwrap();
    assert_eq!((listing.workers.len(), listing.next), (1000, None));
    let calls = ground.calls("DescribeInstances").await;
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0]["parameters"]["MaxResults"], "1000");
}

#[tokio::test]
async fn pages_go_on_until_the_last() {
    let Some(ground) = Ground::new("sa-east-1") else { return };
    let owner = request("pages").owner;
    for _ in 0..12 {
        ground.witness(&["many", "1", owner.as_str()]);
    }
    ground.faults(json!({ "page": 5 })).await;
    let provider = ground.provider();
    let (mut page, mut sizes, mut ids) = (None, Vec::new(), BTreeSet::new());
    loop {
        let listing = provider.list(&owner, page.as_ref()).await.unwrap();
        sizes.push(listing.workers.len());
        ids.extend(listing.workers.into_iter().map(|worker| worker.provider_id));
        page = listing.next;
        if page.is_none() {
            break;
        }
    }
    assert_eq!((sizes, ids.len()), (vec![5, 5, 2], 12));
}

#[tokio::test]
async fn an_instance_that_may_not_be_ended_is_told_so() {
    let Some(ground) = Ground::new("eu-west-1") else { return };
    let request = request("protected");
    let created = ground.provider().create(&request).await.unwrap();
    let code = "OperationNotPermitted";
    let message = "The instance may not be terminated. Modify its disableApiTermination attribute";
    let refuse = json!({ "times": 1, "code": code, "message": message });
    ground.faults(json!({ "refuse": { "TerminateInstances": refuse } })).await;
    let delete =
        DeleteRequest { worker: reference(&request, Some(&created.provider_id)), attempt: 1 };
    let error = ground.provider().delete(&delete).await.unwrap_err();
    assert!(matches!(error, ProviderError::InvalidSpec(_)), "{error}");
    assert!(error.to_string().contains("disableApiTermination"), "{error}");
    ground.provider().delete(&delete).await.unwrap();
    assert!(ground.seen(&request.owner).is_empty());
}
