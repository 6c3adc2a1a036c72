//! How what is planned differs from what was approved.

use serde_json::Value;

use super::plan_text::ranges;
use crate::plan::Difference;
use crate::worker::Slot;

/// Says one difference in a line.
pub fn difference_text(difference: &Difference) -> String {
    match difference {
        Difference::Slots { pool, action, approved, now } => {
            let slots = |slots: &std::collections::BTreeSet<Slot>| {
                let slots: Vec<Slot> = slots.iter().copied().collect();
                if slots.is_empty() {
                    "none".to_owned()
                } else {
                    format!("{pool}[{}]", ranges(&slots))
                }
            };
            format!("  {action}: {} was approved, {} now", slots(approved), slots(now))
        }
        Difference::Value { pool, path, approved, now } => {
            let told = |value: &Value| match value {
                Value::Null => "nothing".to_owned(),
                value => value.to_string(),
            };
            let path = if path.is_empty() { "the pool" } else { path };
            format!("  {pool}: {path}: {} was approved, {} now", told(approved), told(now))
        }
    }
}
