//! Why a plan must not be applied, and what to do about it.

use crate::plan::Refusal;

/// Says why.
pub fn refusal_text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Protect { pool } => {
            format!("the pool {pool} is protected and would lose all its workers")
        }
        Refusal::MaxDestroy { pool, planned, limit } => format!(
            "the pool {pool} would lose {planned} of its workers without replacement; \
             guards.max_destroy allows {limit}"
        ),
        Refusal::Empty => {
            "the files ask for no pool at all, and recorded pools would be deleted".to_owned()
        }
    }
}

/// Says what to do.
pub fn refusal_hint(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Protect { .. } => {
            "keep its workers, or apply it once with `protect: false` and nothing else changed"
        }
        Refusal::MaxDestroy { .. } => {
            "if that is meant, run again with --override-guard max_destroy; \
             a larger max_destroy counts once it is applied"
        }
        Refusal::Empty => "if that is meant, run again with --allow-empty",
    }
}
