//! A run that is killed at any point is finished by the next one: nothing leaked, nothing doubled, no
//! manual step. Every commit and every provider call has a crash point before and after it.

use std::collections::BTreeMap;
use std::time::Duration;

use pool_provider::Idempotency;
use pool_sim::{Call, CallFaults, Settings};
use proptest::prelude::*;

use pool::apply::PoolOutcome;

use super::sandbox::asked_for;
use super::support::{Ended, Switch, World};

fn pool(size: u32, image: &str, extra: &str) -> String {
    format!(
        "{{pool_id: ci, worker_type: vm, provider: sim, fixed_size: {size}, \
         worker_config: {{image: {image}, cpu_cores: 1, memory_mb: 1, {extra}}}, \
         provisioning: {{timeout: 60s}}, update: {{max_surge: 1, max_unavailable: 1}}}}"
    )
}

/// Kills the way from one config to the next at every single point, and finishes it each time.
async fn every_point(from: Option<&str>, to: &str, settings: &Settings) -> usize {
    let mut point = 0;
    loop {
        point += 1;
        let world = World::new(settings.clone());
        if let Some(from) = from {
            world.apply(from, &Switch::never()).await;
            world.assert_converged(from, "before the crash").await;
        }
        let switch = Switch::die_at(point);
        let ended = world.apply(to, &switch).await;
        let context = format!("killed at point {point}");
        if let Ended::Returned(outcome) = ended {
            outcome.unwrap();
            world.assert_converged(to, "not killed at all").await;
            return point - 1;
        }
        world.assert_recorded(&context);
        match world.apply(to, &Switch::never()).await {
            Ended::Returned(Ok(outcomes)) => {
                assert!(outcomes.iter().all(PoolOutcome::is_complete), "{context}: {outcomes:?}");
            }
            other => panic!("{context}: the next run: {other:?}"),
        }
        world.assert_converged(to, &context).await;
    }
}

/// Every kind of change there is, one after the other.
async fn every_change(settings: &Settings) {
    let steps = [
        ("create", None, pool(3, "a", "")),
        ("replace", Some(pool(3, "a", "")), pool(3, "b", "")),
        ("update", Some(pool(2, "a", "")), pool(2, "a", "labels: {x: y}")),
        ("scale in", Some(pool(3, "a", "")), pool(1, "a", "")),
        ("scale out and replace", Some(pool(1, "a", "")), pool(3, "b", "")),
        ("remove", Some(pool(2, "a", "")), "{version: 1, pools: []}".to_owned()),
    ];
    for (what, from, to) in steps {
        let points = every_point(from.as_deref(), &to, settings).await;
        assert!(points > 10, "{what}: only {points} crash points were tried");
    }
}

#[tokio::test(start_paused = true)]
async fn survives_every_point_where_tokens_make_repeats_safe() {
    every_change(&Settings::default()).await;
}

#[tokio::test(start_paused = true)]
async fn survives_every_point_where_names_are_unique() {
    every_change(&Settings { idempotency: Idempotency::UniqueName, ..Settings::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn survives_every_point_where_nothing_makes_repeats_safe() {
    every_change(&Settings { idempotency: Idempotency::None, ..Settings::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn survives_every_point_with_delayed_and_paged_listings() {
    for idempotency in [Idempotency::Token, Idempotency::None] {
        let settings =
            Settings { idempotency, listing_delay_ms: 400, page_size: 2, ..Settings::default() };
        every_point(None, &pool(3, "a", ""), &settings).await;
        every_point(Some(&pool(3, "a", "")), &pool(3, "b", ""), &settings).await;
    }
}

/// A cloud that fails, loses answers, is late and shows things late.
fn hostile(seed: u64, idempotency: Idempotency) -> Settings {
    let faults = CallFaults { fail_before: 0.1, lose_answer: 0.1, late: 0.05, late_ms: 300 };
    Settings {
        seed,
        idempotency,
        latency_ms: 20,
        listing_delay_ms: 200,
        page_size: 4,
        incomplete_listings: 0.1,
        faults: BTreeMap::from([
            (Call::Create, faults),
            (Call::Delete, CallFaults { late: 0.0, ..faults }),
            (Call::Update, CallFaults { late: 0.0, ..faults }),
        ]),
        ..Settings::default()
    }
}

/// Kills run after run at drawn points, then lets runs finish until one has nothing left to do.
async fn seeded(seed: u64, crashes: &[usize], idempotency: Idempotency, removed: bool) {
    let last = if removed { "{version: 1, pools: []}".to_owned() } else { pool(9, "c", "") };
    let configs = [pool(8, "a", ""), pool(8, "b", ""), pool(5, "b", "labels: {x: y}"), last];
    let world = World::new(hostile(seed, idempotency));
    for (config, point) in configs.iter().zip(crashes) {
        world.apply(config, &Switch::die_at(*point)).await;
    }
    let last = &configs[3];
    let mut context = String::new();
    for _ in 0..40 {
        let ended = world.apply(last, &Switch::never()).await;
        if let Ended::Returned(Err(error)) = ended {
            panic!("seed {seed}, crashes {crashes:?}: {error}");
        }
        context = format!("seed {seed}, crashes {crashes:?}, {idempotency:?}, last run {ended:?}");
        // Whatever is still on its way has arrived after this.
        tokio::time::sleep(Duration::from_secs(2)).await;
        if world.plan(last).await.is_empty() {
            break;
        }
    }
    world.assert_converged(last, &context).await;
}

/// A slot whose old worker serves and whose new one was begun under a config that is no longer wanted
/// had two creates at once; the state refused the second one, in every run again.
#[tokio::test(start_paused = true)]
async fn a_create_that_nobody_wants_any_more_is_reaped_before_the_next_one() {
    seeded(7_458_893_354_851_029_586, &[61, 16, 188, 91], Idempotency::Token, false).await;
}

/// How many seeded runs are tried; more where somebody asks for more.
fn cases() -> u32 {
    asked_for("POOL_CRASH_CASES").and_then(|value| value.parse().ok()).unwrap_or(150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn survives_drawn_points_in_a_hostile_cloud(
        seed in any::<u64>(),
        crashes in prop::collection::vec(1_usize..220, 4),
        idempotency in prop::sample::select(vec![
            Idempotency::Token, Idempotency::UniqueName, Idempotency::None,
        ]),
        removed: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(seeded(seed, &crashes, idempotency, removed));
    }
}
