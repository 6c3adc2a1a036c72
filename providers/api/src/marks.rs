//! The keys under which an API that has tags or labels keeps who a worker is, and what stands under them. Whoever looks
//! at a cloud by hand finds the same ones everywhere.

use crate::provider::CreateRequest;

/// The deployment that the worker belongs to.
pub const DEPLOYMENT: &str = "pool.deployment";
/// The provider that created it, by its name in that deployment.
pub const PROVIDER: &str = "pool.provider";
/// The worker's whole name, `POOL-SLOT-GENERATION`.
pub const WORKER: &str = "pool.worker";
/// Its pool.
pub const POOL: &str = "pool.pool";
/// Its slot.
pub const SLOT: &str = "pool.slot";
/// Its generation.
pub const GENERATION: &str = "pool.generation";
/// Which attempt created it.
pub const ATTEMPT: &str = "pool.attempt";
/// The operation that asked for it.
pub const OPERATION: &str = "pool.operation";
/// The hash of the spec that it was created from.
pub const SPEC_HASH: &str = "pool.spec-hash";

/// How many of them there are.
pub const COUNT: usize = 9;

/// Returns who the worker of a create call is, by key.
pub fn of(request: &CreateRequest, provider: &str) -> [(&'static str, String); COUNT] {
    let CreateRequest { owner, name, attempt, operation, spec_hash, .. } = request;
    [
        (DEPLOYMENT, owner.to_string()),
        (PROVIDER, provider.to_owned()),
        (WORKER, name.to_string()),
        (POOL, name.pool.to_string()),
        (SLOT, name.slot.to_string()),
        (GENERATION, name.generation.to_string()),
        (ATTEMPT, attempt.to_string()),
        (OPERATION, operation.to_string()),
        (SPEC_HASH, spec_hash.clone()),
    ]
}
