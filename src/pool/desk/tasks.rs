//! What goes on at the desk by itself: the line, abandoned leases, expiry. Each task ends with the desk.

use std::sync::Weak;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Desk, GLANCE};
use crate::clock::Stopwatch;
use crate::lease::terms::RESPITE;
use crate::lease::{Ending, LeaseId};

/// How often leases are looked at whose time may be over.
const EXPIRY_TICK: Duration = Duration::from_millis(500);
/// How far the wall clock may move beside real time before it was set by somebody.
const CLOCK_JUMP: Duration = Duration::from_secs(5);

/// Looks at the line for as long as the desk is there.
pub(super) async fn serve_line(desk: Weak<Desk>) {
    loop {
        let Some(open) = desk.upgrade() else { return };
        let idle = open.line().is_empty();
        let woken = async {
            if idle {
                // So that the desk can go although nobody comes.
                let _quiet = timeout(GLANCE * 20, open.wake.notified()).await.is_err();
            } else {
                let _quiet = timeout(GLANCE, open.wake.notified()).await.is_err();
            }
        };
        woken.await;
        if let Err(error) = open.round().await {
            open.fail_all(&error);
        }
    }
}

/// Takes back what was granted to those who hung up.
pub(super) async fn take_back(desk: Weak<Desk>, mut abandoned: mpsc::UnboundedReceiver<LeaseId>) {
    while let Some(id) = abandoned.recv().await {
        let Some(open) = desk.upgrade() else { return };
        // What cannot be written now expires by itself.
        let _expires = open.end(id, Ending::Abandoned).await.is_err();
    }
}

/// Ends leases whose time is over.
pub(super) async fn expire(desk: Weak<Desk>) {
    let mut not_before: Option<Timestamp> = None;
    let mut last: Option<(Stopwatch, Timestamp)> = None;
    loop {
        {
            let Some(open) = desk.upgrade() else { return };
            let now = open.clock.now();
            let jumped = last.is_some_and(|(watch, then)| {
                let wall = Duration::try_from(now.duration_since(then)).unwrap_or_default();
                wall.saturating_sub(watch.elapsed()) > CLOCK_JUMP
            });
            // Holders could not renew before the server was there, nor before the clock was set.
            if jumped || not_before.is_none() {
                not_before = now.checked_add(RESPITE).ok();
            }
            last = Some((Stopwatch::start(), now));
            let from = not_before.unwrap_or(Timestamp::MAX);
            while let Ok(ended) = open.store.expire_leases(from, Duration::ZERO).await {
                for ended in &ended {
                    open.settle(ended);
                }
                if ended.is_empty() {
                    break;
                }
            }
        }
        sleep(EXPIRY_TICK).await;
    }
}
