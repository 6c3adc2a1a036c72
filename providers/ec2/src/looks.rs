//! Looking again for what EC2 may not show yet.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How soon it is looked again for what does not show yet.
const LOOK: Duration = Duration::from_millis(500);
/// The longest pause between two such looks.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// Looking again for what may not show yet: seldomer each time.
pub(crate) struct Looks {
    until: Instant,
    pause: Duration,
}

impl Looks {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { until: Instant::now() + limit, pause: LOOK }
    }

    /// Waits for a while; false when there is no time for another look.
    pub(crate) async fn again(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.until {
            return false;
        }
        sleep_until((now + self.pause).min(self.until)).await;
        self.pause = (self.pause * 2).min(LONGEST_LOOK);
        true
    }
}
