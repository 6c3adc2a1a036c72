//! Why a plan must not be applied, and what to do about it.

use crate::plan::Refusal;

/// Says why.
pub fn refusal_text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Protect { pool } => format!("the pool {pool} is protected and would be deleted"),
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
            "put the pool back, or apply it once with `protect: false` before removing it"
        }
        Refusal::MaxDestroy { .. } => {
            "if that is meant, run again with --override-guard max_destroy"
        }
        Refusal::Empty => "if that is meant, run again with --allow-empty",
    }
}
