//! What a provider's answer to a probe says of the worker, and what it says of whoever asks. Time is simulated.

use pool::config::HealthCheckConfig;
use pool::probe::{Probed, probe};
use pool_provider::{
    DeploymentId, Generation, PoolId, ProbeOutcome, Probes, ProviderError, SharedProvider, Slot,
    WorkerName, WorkerRef,
};
use pool_sim::Settings;

use super::attempts::Scripted;
use super::support::World;

/// Returns what one probe comes to where `probes` says who answers it, and `answer` what, if anything.
async fn probed(probes: Probes, answer: Option<Result<ProbeOutcome, ProviderError>>) -> Probed {
    let mut provider = Scripted::new(&World::new(Settings::default()), &[]);
    provider.probes = (probes, answer);
    let worker = WorkerRef {
        owner: DeploymentId::from_random([7; 16]),
        name: WorkerName {
            pool: PoolId::try_from("ci".to_owned()).unwrap(),
            slot: Slot(0),
            generation: Generation(1),
        },
        provider_id: None,
    };
    let provider = SharedProvider::new(provider);
    probe(&HealthCheckConfig::default(), (&provider, None), &worker, &[]).await
}

#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_answer_in_time_says_nothing_of_a_worker() {
    let late = || "no answer within 2s".to_owned();
    assert_eq!(probed(Probes::Service, None).await, Probed::Unasked(late()));
    assert_eq!(probed(Probes::Worker, None).await, Probed::Failed(late()));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_whoever_asks_says_nothing_of_a_worker() {
    let why = || "why".to_owned();
    for error in [
        ProviderError::RateLimited { message: why(), retry_after: None },
        ProviderError::Unauthenticated(why()),
        ProviderError::Transient(why()),
    ] {
        for probes in [Probes::Worker, Probes::Service] {
            let told = error.to_string();
            assert_eq!(probed(probes, Some(Err(error.clone()))).await, Probed::Unasked(told));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_says_how_a_worker_is() {
    let why = || "why".to_owned();
    for (answer, expected) in [
        (Ok(ProbeOutcome::Healthy), Probed::Passed),
        (Ok(ProbeOutcome::Unhealthy(why())), Probed::Failed(why())),
        (Ok(ProbeOutcome::Gone(why())), Probed::Gone(why())),
        (Err(ProviderError::UnknownOutcome(why())), Probed::Failed("outcome unknown: why".into())),
    ] {
        assert_eq!(probed(Probes::Worker, Some(answer)).await, expected);
    }
}
