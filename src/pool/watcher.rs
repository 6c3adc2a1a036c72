//! What happens to pools, for whoever measures it.

use std::time::Duration;

use crate::state::Ended;
use crate::worker::PoolId;

/// Is told what happens. It must not block.
pub trait Watcher: Send + Sync {
    /// A lease was granted, that long after it was asked for.
    fn granted(&self, _pool: &PoolId, _waited: Duration) {}
    /// It stood in the line for that long.
    fn queued(&self, _pool: &PoolId, _waited: Duration) {}
    /// A lease ended.
    fn ended(&self, _ended: &Ended) {}
    /// A worker was probed.
    fn probed(&self, _pool: &PoolId, _passed: bool) {}
    /// A worker is being created (`None`), or came, or did not.
    fn provisioning(&self, _pool: &PoolId, _succeeded: Option<bool>) {}
    /// A worker was replaced.
    fn replaced(&self, _pool: &PoolId, _reason: &str) {}
    /// Replacing stopped because too many workers are unhealthy, or goes on.
    fn remediation(&self, _pool: &PoolId, _stopped: bool) {}
}

/// Nobody measures.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Watcher for Unwatched {}
