//! A task that many wait for, and that goes on when none of them does any more: a probe gives up long before a source of
//! credentials does, and the next one should find what came of it.

use std::fmt;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::task::AbortHandle;

/// Work that is under way.
#[derive(Clone)]
pub(crate) struct Joint<T: Clone> {
    task: AbortHandle,
    ended: Shared<BoxFuture<'static, Option<T>>>,
}

impl<T: Clone> fmt::Debug for Joint<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joint").field("is_over", &self.is_over()).finish_non_exhaustive()
    }
}

impl<T: Clone> Joint<T> {
    pub(crate) fn begin(work: impl Future<Output = T> + Send + 'static) -> Self
    where
        T: Send + Sync + 'static,
    {
        let task = tokio::spawn(work);
        Self { task: task.abort_handle(), ended: task.map(Result::ok).boxed().shared() }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for what comes of it; `None` when it was broken off.
    pub(crate) async fn ended(self) -> Option<T> {
        self.ended.await
    }
}
