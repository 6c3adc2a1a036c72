//! Client tokens: what they save from, and where they fail, so that tags have to tell.

use pool_provider::{DeleteRequest, ProviderError, WorkerProvider as _};
use serde_json::json;

use crate::ground::{Ground, reference, request};

#[tokio::test]
async fn a_lost_answer_is_unknown_and_its_repeat_gives_the_same_instance() {
    let Some(ground) = Ground::new("ap-south-1") else { return };
    let request = request("lost");
    ground.faults(json!({ "lose": { "RunInstances": 1 } })).await;
    let lost = ground.provider().create(&request).await.unwrap_err();
    assert!(matches!(lost, ProviderError::UnknownOutcome(_)), "{lost}");
    let again = ground.provider().create(&request).await.unwrap();
    let seen = ground.seen(&request.owner);
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0]["InstanceId"], again.provider_id.as_str());
}

#[tokio::test]
async fn a_call_that_was_never_answered_and_never_carried_out_is_repeated() {
    let Some(ground) = Ground::new("ap-south-1") else { return };
    let request = request("dropped");
    ground.faults(json!({ "drop": { "RunInstances": 1 } })).await;
    let lost = ground.provider().create(&request).await.unwrap_err();
    assert!(lost.is_unknown(), "{lost}");
    ground.provider().create(&request).await.unwrap();
    assert_eq!(ground.seen(&request.owner).len(), 1);
}

#[tokio::test]
async fn a_token_that_comes_with_other_parameters_is_looked_up_by_tags() {
    let Some(ground) = Ground::new("ap-south-1") else { return };
    let mut request = request("mismatch");
    let first = ground.provider().create(&request).await.unwrap();
    // As another version of the program, or another order of types, would send it.
    request.spec.attributes.insert("instance_types".into(), json!(["m6i.large"]));
    let found = ground.provider().create(&request).await.unwrap();
    assert_eq!(found.provider_id, first.provider_id);
    assert_eq!(found.attributes["instance_type"], "m7i.large", "it is what it is");
    assert_eq!(ground.seen(&request.owner).len(), 1);
}

#[tokio::test]
async fn a_token_whose_instance_is_gone_is_spent_and_the_next_attempt_has_its_own() {
    let Some(ground) = Ground::new("ap-south-1") else { return };
    let mut request = request("spent");
    let first = ground.provider().create(&request).await.unwrap();
    let delete =
        DeleteRequest { worker: reference(&request, Some(&first.provider_id)), attempt: 1 };
    ground.provider().delete(&delete).await.unwrap();
    let spent = ground.provider().create(&request).await.unwrap_err();
    assert!(matches!(spent, ProviderError::Spent(_)), "{spent}");

    // The same, with parameters that are others by now: the tags tell that it is gone.
    let mut other = request.clone();
    other.spec.attributes.insert("instance_types".into(), json!(["m6i.large"]));
    let spent = ground.provider().create(&other).await.unwrap_err();
    assert!(matches!(spent, ProviderError::Spent(_)), "{spent}");

    request.attempt = 2;
    request.token = "spent-2".to_owned();
    let second = ground.provider().create(&request).await.unwrap();
    assert_ne!(second.provider_id, first.provider_id);
    assert_eq!(ground.seen(&request.owner).len(), 1);
}

#[tokio::test]
async fn a_token_is_spent_only_once_its_instance_would_show() {
    let Some(ground) = Ground::new("ap-south-1") else { return };
    let mut request = request("late");
    ground.faults(json!({ "late_ms": 600 })).await;
    let first = ground.provider().create(&request).await.unwrap();
    request.spec.attributes.insert("instance_types".into(), json!(["m6i.large"]));
    let found = ground.provider().create(&request).await.unwrap();
    assert_eq!(found.provider_id, first.provider_id, "it waits until the instance shows");
}

#[tokio::test]
async fn a_token_that_was_forgotten_makes_another_instance_which_listings_tell_apart() {
    let Some(ground) = Ground::new("ap-south-1") else { return };
    let request = request("forgotten");
    let first = ground.provider().create(&request).await.unwrap();
    ground.faults(json!({ "forget_ms": 0 })).await;
    // Whoever repeats looks first (`get`), and so never comes here; if it does, both show.
    let known = ground.provider().get(&reference(&request, None)).await.unwrap();
    assert_eq!(known.provider_id, first.provider_id);
    ground.provider().create(&request).await.unwrap();
    let listed = ground.provider().list(&request.owner, None).await.unwrap().workers;
    assert_eq!(listed.len(), 2);
    let delete = DeleteRequest { worker: reference(&request, None), attempt: 1 };
    ground.provider().delete(&delete).await.unwrap();
    assert!(ground.seen(&request.owner).is_empty());
}

#[tokio::test]
async fn the_same_attempt_is_made_in_the_same_place_and_the_next_one_in_the_next() {
    let Some(ground) = Ground::new("ap-south-1") else { return };
    let mut request = request("places");
    ground.faults(json!({ "no_room": ["m7i.large"] })).await;
    for _ in 0..2 {
        let full = ground.provider().create(&request).await.unwrap_err();
        let ProviderError::OutOfCapacity { message, elsewhere } = full else { panic!("{full}") };
        assert!(
            message.starts_with("running a m7i.large: InsufficientInstanceCapacity"),
            "{message}"
        );
        assert!(elsewhere);
    }
    (request.attempt, request.passed_over, request.token) = (2, 1, "places-2".to_owned());
    let created = ground.provider().create(&request).await.unwrap();
    assert_eq!(created.attributes["instance_type"], "m6i.large");
    let sent: Vec<String> = ground
        .calls("RunInstances")
        .await
        .iter()
        .map(|call| {
            let sent = &call["parameters"];
            format!(
                "{} {}",
                sent["ClientToken"].as_str().unwrap(),
                sent["InstanceType"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(sent, ["places-1 m7i.large", "places-1 m7i.large", "places-2 m6i.large"]);
}

#[tokio::test]
async fn where_the_last_place_is_full_there_is_no_other() {
    let Some(ground) = Ground::new("ap-south-1") else { return };
    let mut request = request("full");
    request.passed_over = 1;
    ground.faults(json!({ "no_room": ["m7i.large", "m6i.large"] })).await;
    let full = ground.provider().create(&request).await.unwrap_err();
    assert!(matches!(full, ProviderError::OutOfCapacity { elsewhere: false, .. }), "{full}");
}
