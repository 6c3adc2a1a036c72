//! What goes on at the desk by itself: the line, abandoned leases, expiry. Each task ends with the desk.

use std::sync::Weak;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::given::Abandoned;
use super::{Desk, GLANCE};
use crate::clock::Stopwatch;
use crate::lease::Ending;
use crate::lease::terms::Respite;

/// How often leases are looked at whose time may be over.
const EXPIRY_TICK: Duration = Duration::from_millis(500);

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
pub(super) async fn take_back(desk: Weak<Desk>, mut abandoned: mpsc::UnboundedReceiver<Abandoned>) {
    while let Some(next) = abandoned.recv().await {
        let Some(open) = desk.upgrade() else { return };
        let id = match next {
            Abandoned::Lease(id) => id,
            Abandoned::All(told) => {
                let _nobody_waits = told.send(()).is_err();
                continue;
            }
        };
        // What cannot be written now expires by itself.
        let _expires = open.end(id, Ending::Abandoned).await.is_err();
    }
}

/// Ends leases whose time is over.
pub(super) async fn expire(desk: Weak<Desk>, mut respite: Respite) {
    let mut since = Stopwatch::start();
    loop {
        {
            let Some(open) = desk.upgrade() else { return };
            let now = open.clock.now();
            let not_before = respite.look(now, since.elapsed());
            since = Stopwatch::start();
            while let Ok(ended) = open.store.expire_leases(now, not_before, Duration::ZERO).await {
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
