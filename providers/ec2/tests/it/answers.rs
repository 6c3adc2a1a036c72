//! What the API's refusals come to: throttling, quotas, credentials, what is no answer at all.

use std::time::Duration;

use pool_ec2::Config;
use pool_provider::{ProviderError, WorkerProvider as _};
use serde_json::json;
use tokio::time::Instant;

use crate::ground::{Ground, provider_with, reference, request};

#[tokio::test]
async fn calls_are_spread_once_there_were_too_many() {
    let Some(ground) = Ground::new("ca-central-1") else { return };
    let provider = ground.provider();
    let worker = reference(&request("throttled"), None);
    ground.faults(json!({ "refuse": { "DescribeInstances": { "times": 2, "code": "RequestLimitExceeded" } } })).await;
    let mut asked = Vec::new();
    for _ in 0..2 {
        let refused = provider.get(&worker).await.unwrap_err();
        let ProviderError::RateLimited { retry_after, .. } = refused else { panic!("{refused}") };
        asked.push(retry_after.unwrap());
    }
    assert!(asked[0] > Duration::ZERO && asked[1] > asked[0], "{asked:?}");
    // Two more are as far apart as the second refusal asked for, whoever makes them.
    let watch = Instant::now();
    for _ in 0..2 {
        let none = provider.get(&worker).await.unwrap_err();
        assert!(matches!(none, ProviderError::NotFound(_)), "{none}");
    }
    assert!(watch.elapsed() >= asked[1], "{:?} {asked:?}", watch.elapsed());
}

#[tokio::test]
async fn refusals_have_their_names_and_say_what_was_done_where() {
    let Some(ground) = Ground::new("ca-central-1") else { return };
    for (code, expected) in [
        ("VcpuLimitExceeded", "quota"),
        ("MaxSpotInstanceCountExceeded", "quota"),
        ("UnauthorizedOperation", "unauthenticated"),
        ("InvalidAMIID.NotFound", "invalid_spec"),
        ("InvalidParameterValue", "invalid_spec"),
        ("InsufficientInstanceCapacity", "out_of_capacity"),
        ("RequestLimitExceeded", "rate_limited"),
        ("InternalError", "unknown_outcome"),
        ("Unavailable", "unknown_outcome"),
    ] {
        let refuse = json!({ "times": 1, "code": code, "message": "so it is" });
        ground.faults(json!({ "refuse": { "RunInstances": refuse } })).await;
        let error = ground.provider().create(&request("named")).await.unwrap_err();
        assert_eq!(error.code(), expected, "{code}");
        let told = error.to_string();
        assert!(told.contains(&format!("running a m7i.large: {code}: so it is")), "{told}");
    }
    assert!(ground.seen(&request("named").owner).is_empty());
}

#[tokio::test]
async fn credentials_that_are_wrong_or_missing_are_unauthenticated() {
    let Some(ground) = Ground::new("ca-central-1") else { return };
    let of = async |profile: &str| {
        let config = Config { profile: Some(profile.to_owned()), ..ground.config.clone() };
        let error = provider_with(config).list(&request("keys").owner, None).await;
        let error = error.unwrap_err();
        assert!(matches!(error, ProviderError::Unauthenticated(_)), "{error}");
        error.to_string()
    };
    let told = of("wrong-key").await;
    assert!(told.contains("AuthFailure"), "{told}");
    let told = of("wrong-secret").await;
    assert!(told.contains("SignatureDoesNotMatch"), "{told}");
    assert!(told.ends_with("is this machine's clock right?"), "{told}");
    let told = of("nobody").await;
    assert!(told.contains("no AWS credentials: the profile `nobody` is not there"), "{told}");
}

#[tokio::test]
async fn where_nobody_listens_nothing_happened() {
    let Some(mut ground) = Ground::new("ca-central-1") else { return };
    ground.config.endpoint = Some("http://127.0.0.1:9".to_owned());
    let error = ground.provider().create(&request("nobody")).await.unwrap_err();
    assert!(matches!(error, ProviderError::Transient(_)), "{error}");
    assert!(error.to_string().contains("nobody answers at http://127.0.0.1:9"), "{error}");
}

#[tokio::test]
async fn what_is_no_answer_leaves_a_change_unknown() {
    let Some(mut ground) = Ground::new("ca-central-1") else { return };
    // It answers, and what it says is not EC2's.
    let endpoint = ground.config.endpoint.clone().unwrap();
    ground.config.endpoint = Some(format!("{endpoint}/-/faults"));
    let error = ground.provider().create(&request("strange")).await.unwrap_err();
    assert!(error.is_unknown(), "{error}");
    let error = ground.provider().list(&request("strange").owner, None).await.unwrap_err();
    assert!(matches!(error, ProviderError::Transient(_)), "{error}");
}

#[test]
fn a_region_has_to_be_known() {
    let settings = pool_ec2::Settings {
        name: "ec2".into(),
        now: std::sync::Arc::new(|| std::time::SystemTime::UNIX_EPOCH),
        identity: None,
    };
    let refused = |region: Option<&str>| {
        let config = Config { region: region.map(str::to_owned), ..Config::default() };
        pool_ec2::Ec2Provider::new(config, settings.clone()).unwrap_err()
    };
    let why = refused(None);
    assert!(why.contains("set `region` in its settings, or AWS_REGION"), "{why}");
    // The environment's went through no schema.
    for wrong in ["eu-central-1 ", "Frankfurt am Main", "eu", "eu-", "eu--1", "EU-central-1", "e-1"]
    {
        let why = refused(Some(wrong));
        assert!(why.starts_with(&format!("`{wrong}` is no region")), "{why}");
    }
}
