//! Data to text and JSON: plans, status, events, diagnostics.
//!
//! Every function takes data and returns a string; whether there is colour, and how wide the terminal
//! is, comes in as [`Look`]. Knows neither the state nor providers, and decides nothing.

mod diagnostic;
mod editor;
mod effects;
mod event;
mod findings;
mod look;
mod plan_json;
mod plan_markdown;
mod plan_text;
mod provider;
mod refusal;
mod status;

pub use diagnostic::{report_json, report_text};
pub use editor::{Editor, editor_settings};
pub use effects::difference_text;
pub use event::{
    LINE_TYPES, Progress, apply_summary_json, apply_summary_text, diagnostic_events, event_json,
    event_text, plan_events,
};
pub use findings::{report_github, report_gitlab, report_sarif};
pub use look::Look;
pub use plan_json::{FORMAT_VERSION, plan_json};
pub use plan_markdown::{plan_github, plan_markdown};
pub use plan_text::{plan_text, summary_line};
pub use provider::{ProviderRow, finding_json, finding_text, provider_table};
pub use refusal::{refusal_hint, refusal_text};
pub use status::{status_table, worker_details, worker_table};

use crate::plan::{Action, Reason, ReplaceOrder};

/// Says a reason to a person.
pub(crate) fn reason_text(reason: Reason) -> &'static str {
    match reason {
        Reason::NoOpBecauseCurrent => "it is what the files ask for",
        Reason::CreateBecauseEmpty => "the slot has no worker yet",
        Reason::CreateBecauseMissing => "its worker is recorded and no longer there",
        Reason::CreateBecauseFailed => "an earlier attempt failed",
        Reason::CreateBecauseInterrupted => "a run was interrupted while it created the worker",
        Reason::UpdateBecauseChanged => "labels or tags changed in the files",
        Reason::UpdateBecauseDrift => "labels or tags changed at the provider",
        Reason::ReplaceBecauseSpecChanged => "its configuration changed",
        Reason::ReplaceBecauseDrift => "it is no longer what was created",
        Reason::ReplaceBecauseRetired => "it is used up",
        Reason::ReplaceBecauseUnhealthy => "it is unhealthy",
        Reason::ReplaceBecauseFailed => "its creation failed",
        Reason::ReplaceBecauseInterrupted => {
            "a run was interrupted while it replaced or deleted the worker"
        }
        Reason::ReplaceByRequest => "--replace asks for it",
        Reason::DeleteBecauseScaleIn => "the pool becomes smaller",
        Reason::DeleteBecausePoolRemoved => "the files no longer name the pool",
        Reason::DeleteBecauseOrphan => "it bears our tag and is not recorded",
        Reason::DeleteBecauseUnknown => {
            "it bears our tag, and this state never created it: is the state an old one?"
        }
        Reason::DeleteBecauseSuperseded => "a newer worker has taken its place",
        Reason::DeleteBecauseInterrupted => "a run was interrupted while it deleted the worker",
        Reason::DeleteByRequest => "destroy asks for it",
        Reason::AdoptInterrupted => "a run was interrupted after the worker was created",
        Reason::AdoptOrphan => "it bears our tag and is what the slot needs",
    }
}

/// Terraform's words for an action.
pub(crate) fn action_verb(action: Action) -> &'static str {
    match action {
        Action::Create => "created",
        Action::Update => "updated in-place",
        Action::Replace(_) => "replaced",
        Action::Delete => "destroyed",
        Action::Adopt => "adopted",
    }
}

/// Terraform's signs for an action.
pub(crate) fn action_sign(action: Action) -> &'static str {
    match action {
        Action::Create => "+",
        Action::Update => "~",
        Action::Replace(ReplaceOrder::DestroyFirst) => "-/+",
        Action::Replace(ReplaceOrder::CreateFirst) => "+/-",
        Action::Delete => "-",
        Action::Adopt => "<=",
    }
}
