//! What files ask for that does not fit what a provider says of itself, and where in the files that stands.
//!
//! Only the provider knows its schemas, so this is found long after the files were read: their texts are looked
//! through once more, which costs nobody anything but whoever made the mistake.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::diagnostic::{Diagnostic, Report, Sources};
use super::document::{self, Document};
use super::load::bases;
use super::pointer::{dotted, escape};
use super::schema::{self, Violation};
use crate::worker::PoolId;

/// Something that a provider does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The provider that says so.
    pub provider: String,
    /// The pool that asks for it; `None` where it is the provider's own config.
    pub pool: Option<PoolId>,
    /// Where that begins, as `file:line:column`; empty where nobody knows.
    pub place: String,
    /// What is wrong, and where from there on.
    violation: Violation,
}

impl Misfit {
    /// A pool wants workers of a type that the provider does not have.
    pub fn worker_type(
        provider: &str,
        (pool, place): (&PoolId, &str),
        wanted: &str,
        has: &[String],
    ) -> Self {
        let summary = format!("there are no workers of type `{wanted}`");
        let found = Diagnostic::error("not-of-this-provider", summary).on("worker_type");
        let violation =
            Violation::at_value("/worker_type", found.help(format!("one of: {}", has.join(", "))));
        let pool = Some(pool.clone());
        Self { provider: provider.to_owned(), pool, place: place.to_owned(), violation }
    }

    /// Returns everything in a pool's attributes that breaks the provider's schema of them.
    ///
    /// # Errors
    /// When that is no schema.
    pub fn attributes(
        provider: &str,
        (pool, place): (&PoolId, &str),
        attributes: &Value,
        schema: &Value,
    ) -> Result<Vec<Self>, String> {
        let found = schema::violations_of(schema, attributes)?.into_iter();
        let misfit = |violation: Violation| Self {
            provider: provider.to_owned(),
            pool: Some(pool.clone()),
            place: place.to_owned(),
            violation: violation.below("/worker_config/attributes"),
        };
        Ok(found.map(misfit).collect())
    }

    /// Returns everything in a provider's config that breaks its schema.
    ///
    /// # Errors
    /// When that is no schema.
    pub fn config(provider: &str, config: &Value, schema: &Value) -> Result<Vec<Self>, String> {
        let found = schema::violations_of(schema, config)?.into_iter();
        let misfit = |violation: Violation| Self {
            provider: provider.to_owned(),
            pool: None,
            place: String::new(),
            violation: violation.below("/config"),
        };
        Ok(found.map(misfit).collect())
    }

    /// Returns the pointer to what asks for it: a pool, or a provider's block.
    fn base(&self, (document, pools): &Looked<'_>) -> Option<String> {
        if let Some(pool) = &self.pool {
            return pools.get(pool.as_str()).cloned();
        }
        let base = format!("/providers/{}", escape(&self.provider));
        document.value.pointer(&base).map(|_| base)
    }

    /// Returns it as a diagnostic, at its place if that is in these documents.
    fn located(&self, documents: &[Looked<'_>]) -> Diagnostic {
        let Violation { pointer, at_key, diagnostic, .. } = &self.violation;
        let at = documents.iter().find_map(|looked| {
            let (document, _) = looked;
            let pointer = format!("{}{pointer}", self.base(looked)?);
            let location =
                if *at_key { document.key_at(&pointer) } else { document.value_at(&pointer) };
            Some((pointer, location))
        });
        let Some((pointer, location)) = at else {
            return Diagnostic { summary: self.to_string(), help: None, ..diagnostic.clone() };
        };
        let summary = format!("{}, says the provider `{}`", diagnostic.summary, self.provider);
        let found = Diagnostic { summary, ..diagnostic.clone() };
        found.on(dotted(&pointer)).at(Some(location))
    }
}

/// A document, and where its pools are, by id.
type Looked<'d> = (&'d Document, BTreeMap<&'d str, String>);

fn pools(document: &Document) -> BTreeMap<&str, String> {
    let id = |base: &String| document.value.pointer(&format!("{base}/pool_id"))?.as_str();
    bases(&document.value).into_iter().filter_map(|base| Some((id(&base)?, base))).collect()
}

/// Everything in a sentence: `pools.yaml:5:7: ci: worker_config.attributes.disk: it must be …`.
impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, pool, place, violation } = self;
        if !place.is_empty() {
            write!(f, "{place}: ")?;
        }
        match pool {
            Some(pool) => write!(f, "{pool}: ")?,
            None => write!(f, "providers.{provider}.")?,
        }
        let Violation { pointer, diagnostic, .. } = violation;
        write!(f, "{}: {}", dotted(pointer), diagnostic.summary)?;
        if let Some(help) = &diagnostic.help {
            write!(f, " ({help})")?;
        }
        write!(f, ", says the provider `{provider}`")
    }
}

/// Returns misfits as a report about the files that ask for them.
pub fn misfits_report(misfits: &[Misfit], sources: &Sources) -> Report {
    // What is wrong with them otherwise was told when they were loaded.
    let mut told = Vec::new();
    let texts = sources.0.iter().enumerate();
    let documents: Vec<Document> = texts
        .flat_map(|(number, source)| document::parse(number, &source.text, &mut told))
        .collect();
    let looked: Vec<Looked<'_>> =
        documents.iter().map(|document| (document, pools(document))).collect();
    let diagnostics = misfits.iter().map(|misfit| misfit.located(&looked)).collect();
    let mut report = Report { sources: sources.clone(), diagnostics };
    report.sort();
    report
}
