//! The contract, as every provider keeps it.

use std::sync::atomic::{AtomicBool, Ordering};

use pool_ec2::Ec2Provider;
use pool_provider::WorkerSpec;
use pool_provider::conformance::{self, Outcome, Subject};
use serde_json::json;

use crate::ground::{Ground, spec};

/// Tells two runs on one server apart.
fn seed() -> [u8; 15] {
    let mut seed = [9; 15];
    seed[..4].copy_from_slice(&std::process::id().to_be_bytes());
    seed
}

struct Region {
    ground: Ground,
    lose: AtomicBool,
}

impl Subject for Region {
    type Provider = Ec2Provider;

    fn provider(&self) -> Ec2Provider {
        self.ground.provider()
    }

    fn spec(&self) -> WorkerSpec {
        spec(&json!({ "instance_types": ["m7i.large"] }))
    }

    fn lose_next_create(&self) -> bool {
        self.lose.store(true, Ordering::SeqCst);
        tokio::task::block_in_place(|| {
            let lose = self.ground.faults(json!({ "lose": { "RunInstances": 1 } }));
            tokio::runtime::Handle::current().block_on(lose);
        });
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_provider_keeps_the_contract() {
    let Some(ground) = Ground::new("us-west-1") else { return };
    let region = Region { ground, lose: AtomicBool::new(false) };
    let found = Box::pin(conformance::run(&region, seed(), &mut |_| {})).await;
    let not_kept: Vec<String> = found
        .iter()
        .filter(|finding| finding.outcome != Outcome::Kept)
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        not_kept,
        [
            "not tried here: a reset worker keeps its id and its tags: this provider does not reset workers",
            "not tried here: a reset is repeated when its caller is gone: this provider does not reset workers",
            "not tried here: a listing says when it does not see everything: nothing can be hidden \
             from a listing here",
        ]
    );
    assert!(region.lose.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_is_kept_where_effects_show_late() {
    let Some(mut ground) = Ground::new("us-west-2") else { return };
    ground.config.settle = pool_provider::HumanDuration::from_secs(1);
    ground.faults(json!({ "late_ms": 400 })).await;
    let region = Region { ground, lose: AtomicBool::new(false) };
    let suite = conformance::Suite::new(&region, seed());
    // Losing an answer would replace the fault.
    let is_wanted = |rule: &str| !rule.contains("lost answer");
    let found = Box::pin(suite.run(&is_wanted, &mut |_| {})).await;
    let broken: Vec<String> = found
        .iter()
        .filter(|finding| matches!(finding.outcome, Outcome::Broken(_)))
        .map(ToString::to_string)
        .collect();
    assert_eq!(broken, Vec::<String>::new());
}
