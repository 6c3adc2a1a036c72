//! `pool provider`: what providers there are, what each can do, and whether it keeps the contract.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use pool_provider::conformance::{Finding, Outcome, Subject, Suite};
use pool_provider::{DeploymentId, SharedProvider, WorkerProvider as _, WorkerSpec};
use serde_json::json;

use super::context::Context;
use super::error::CliError;
use super::exit::Exit;
use super::interrupt::Interrupt;
use crate::config::{self, Loaded, ProviderConfig, StaticPoolConfig};
use crate::pool::{Providers, Secrets, verify_pool};
use crate::render::{self, ProviderRow};
use crate::state::{Store, WhenMissing};
use crate::worker::PoolId;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: ProviderCommand,
}

#[derive(Debug, Subcommand)]
enum ProviderCommand {
    /// List the providers that files declare, that the state knows, and that are there by themselves
    List {
        /// Files, folders of *.yaml, *.yml and *.json, or - for standard input
        #[arg(value_name = "CONFIG")]
        paths: Vec<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show how a provider is reached and what it can do
    Describe {
        /// The provider's name
        #[arg(value_name = "PROVIDER")]
        name: String,
        /// Files that declare it; without any, it is as the state knows it
        #[arg(value_name = "CONFIG")]
        paths: Vec<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Try every rule of the contract on a provider, with workers of its own that are deleted again
    Test {
        /// The provider's name
        #[arg(value_name = "PROVIDER")]
        name: String,
        /// Files that declare it; without any, it is as the state knows it
        #[arg(value_name = "CONFIG")]
        paths: Vec<PathBuf>,
        /// Whose workers are created; by default those of the first pool that uses the provider
        #[arg(long, value_name = "POOL")]
        pool: Option<PoolId>,
        /// Try only the rules that have these words in them
        #[arg(long, value_name = "WORDS")]
        rule: Option<String>,
        /// Print JSON, one line a rule
        #[arg(long)]
        json: bool,
    },
}

impl Arguments {
    /// Whether an interrupt is not just the end: what a test has begun is deleted.
    pub(super) fn handles_signals(&self) -> bool {
        matches!(self.command, ProviderCommand::Test { .. })
    }
}

pub(super) async fn run(context: &Context, arguments: &Arguments) -> Result<Exit, CliError> {
    let store = context.open("pool provider", WhenMissing::Pretend)?;
    match &arguments.command {
        ProviderCommand::List { paths, json } => {
            let known = Known::gather(context, &store, paths).await?;
            list(context, &store, &known, *json).await
        }
        ProviderCommand::Describe { name, paths, json } => {
            let known = Known::gather(context, &store, paths).await?;
            describe(context, &known, name, *json).await
        }
        ProviderCommand::Test { name, paths, pool, rule, json } => {
            let known = Known::gather(context, &store, paths).await?;
            let asked = Asked { name, pool: pool.as_ref(), rule: rule.as_deref(), json: *json };
            test(context, &store, &known, &asked).await
        }
    }
}

/// The providers and pools that files and the state name.
struct Known {
    providers: BTreeMap<String, (ProviderConfig, &'static str)>,
    pools: Vec<StaticPoolConfig>,
    shelf: Providers,
}

impl Known {
    async fn gather(context: &Context, store: &Store, paths: &[PathBuf]) -> Result<Self, CliError> {
        let Loaded { pools, providers: declared, .. } = match paths {
            [] => Loaded::default(),
            paths => context.load(paths).await?,
        };
        let environment = &context.world.environment;
        let declared: BTreeMap<String, ProviderConfig> = declared
            .into_iter()
            .map(|(name, config)| (name, config.in_environment(environment)))
            .collect();
        let implicit = ProviderConfig::implicit_names().into_iter().filter_map(|name| {
            let config = ProviderConfig::implicit(name)?.in_environment(environment);
            Some((name.to_owned(), (config, "built in")))
        });
        let recorded = store.provider_configs().await?.into_iter();
        let recorded = recorded.map(|(name, config)| (name, (config, "state")));
        let from_files = declared.clone().into_iter();
        let from_files = from_files.map(|(name, config)| (name, (config, "files")));
        let shelf = context.providers(store).await?;
        let mut configs: Vec<StaticPoolConfig> =
            pools.into_iter().map(|pool| pool.config).collect();
        let recorded_pools = store.load().await?;
        configs.extend(recorded_pools.into_iter().filter_map(|pool| Some(pool.applied?.config)));
        let providers: BTreeMap<_, _> = implicit.chain(recorded).chain(from_files).collect();
        let all = providers
            .iter()
            .map(|(name, (config, _))| (name.clone(), ProviderConfig::clone(config)));
        shelf.declare(all.collect());
        Ok(Self { providers, pools: configs, shelf })
    }

    fn get(&self, name: &str) -> Result<&ProviderConfig, CliError> {
        let found = self.providers.get(name).map(|(config, _)| config);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.providers.keys().map(String::as_str).collect();
            CliError::usage(
                format!("there is no provider `{name}`"),
                format!("known are: {}; name the files that declare others", names.join(", ")),
            )
        })
    }

    /// Returns a pool whose workers the provider creates.
    fn pool(&self, name: &str, wanted: Option<&PoolId>) -> Result<&StaticPoolConfig, CliError> {
        let mut uses = self.pools.iter().filter(|pool| pool.provider_name() == name);
        let found = uses.find(|pool| wanted.is_none_or(|wanted| *wanted == pool.pool_id));
        found.ok_or_else(|| {
            let message = match wanted {
                Some(pool) => format!("no pool `{pool}` uses the provider `{name}`"),
                None => format!("no pool uses the provider `{name}`"),
            };
            CliError::usage(
                message,
                "name files with a pool that does: its workers are what is created",
            )
        })
    }
}

async fn list(
    context: &Context,
    store: &Store,
    known: &Known,
    json: bool,
) -> Result<Exit, CliError> {
    let recorded = store.load().await?;
    let workers = |name: &str| {
        let workers = recorded.iter().flat_map(|pool| &pool.workers);
        workers.filter(|worker| worker.provider == name).count()
    };
    let printer = &context.printer;
    if json {
        let list: Vec<_> = known
            .providers
            .iter()
            .map(|(name, (config, from))| {
                json!({ "name": name, "config": config, "from": from, "workers": workers(name) })
            })
            .collect();
        printer.json(&json!({ "format_version": "1.0", "providers": list }));
        return Ok(Exit::Done);
    }
    let rows: Vec<ProviderRow<'_>> = known
        .providers
        .iter()
        .map(|(name, (config, from))| ProviderRow { name, config, from, workers: workers(name) })
        .collect();
    printer.data(&render::provider_table(&rows, printer.look));
    Ok(Exit::Done)
}

async fn describe(
    context: &Context,
    known: &Known,
    name: &str,
    json: bool,
) -> Result<Exit, CliError> {
    let config = known.get(name)?;
    let description = known.shelf.get(name).await?.describe();
    let document = json!({
        "format_version": "1.0", "name": name, "config": config, "description": description,
    });
    if json {
        context.printer.json(&document);
    } else {
        context.printer.data(&config::to_yaml(&document));
    }
    Ok(Exit::Done)
}

/// A provider as it is declared, opened anew for each call.
struct Tested<'k> {
    shelf: &'k Providers,
    name: &'k str,
    provider: SharedProvider,
    spec: WorkerSpec,
    timeout: Duration,
}

impl Subject for Tested<'_> {
    type Provider = SharedProvider;

    fn provider(&self) -> SharedProvider {
        // It was opened a moment ago.
        self.shelf.open_anew(self.name).unwrap_or_else(|_| self.provider.clone())
    }

    fn spec(&self) -> WorkerSpec {
        self.spec.clone()
    }

    fn create_timeout(&self) -> Duration {
        self.timeout
    }
}

/// What a test is about.
struct Asked<'a> {
    name: &'a str,
    pool: Option<&'a PoolId>,
    rule: Option<&'a str>,
    json: bool,
}

async fn test(
    context: &Context,
    store: &Store,
    known: &Known,
    &Asked { name, pool, rule, json }: &Asked<'_>,
) -> Result<Exit, CliError> {
    let config = known.get(name)?;
    let pool = known.pool(name, pool)?;
    let secrets = Secrets::new(context.world.environment.clone().into(), store.secret_key());
    let spec = secrets.resolve_pool(pool, config).map_err(|why| {
        CliError::usage(why, "the workers of the test get the same environment as the pool's")
    })?;
    // A call that is cut off is to be cut off: nothing of an executable may depend on a last word.
    let harsh = BTreeMap::from([(name.to_owned(), config.clone().without_grace())]);
    let shelf = known.shelf.with(harsh);
    let provider = shelf.get(name).await?;
    verify_pool(&provider, pool, "")?;
    // An engine that is away says nothing of a provider.
    let nobody = DeploymentId::from_random(context.world.entropy.bytes());
    provider.list(&nobody, None).await.map_err(|error| {
        CliError::usage(
            format!("the provider {name}: {error}"),
            "it has to answer before its rules can be tried",
        )
    })?;
    let timeout = pool.provisioning.timeout.get();
    let tested = Tested { shelf: &shelf, name, provider, spec: spec.spec, timeout };
    let printer = context.printer.clone();
    let mut tell = |finding: &Finding| {
        if json {
            printer.json_line(&render::finding_json(finding));
        } else {
            printer.data(&render::finding_text(finding, printer.look));
        }
    };
    let is_wanted = |sentence: &str| rule.is_none_or(|words| sentence.contains(words));
    let suite = Suite::new(&tested, context.world.entropy.bytes());
    let mut stop = Interrupt::listen()?;
    let findings = tokio::select! {
        findings = suite.run(&is_wanted, &mut tell) => findings,
        () = stop.asked() => return clean_up(context, &suite, &mut stop).await,
    };
    if findings.is_empty() {
        let words = rule.unwrap_or_default();
        let message = format!("no rule has the words `{words}` in it");
        return Err(CliError::usage(message, "without --rule, all of them are listed and tried"));
    }
    let broken = findings.iter().filter(|f| matches!(f.outcome, Outcome::Broken(_))).count();
    let kept = findings.iter().filter(|f| f.outcome == Outcome::Kept).count();
    if !json {
        let rest = findings.len() - kept - broken;
        printer.data(&format!("\n{kept} kept, {broken} broken, {rest} not tried.\n"));
    }
    tell_left(context, &suite);
    Ok(if broken == 0 { Exit::Done } else { Exit::Error })
}

/// Deletes what a test that was interrupted has begun, unless it is interrupted once more.
async fn clean_up(
    context: &Context,
    suite: &Suite<'_, Tested<'_>>,
    stop: &mut Interrupt,
) -> Result<Exit, CliError> {
    context.printer.error(
        "interrupted; the workers of this test are being deleted (another interrupt leaves them)\n",
    );
    tokio::select! {
        _left = suite.clean() => {}
        () = stop.asked() => {}
    }
    if suite.unclean().is_empty() {
        context.printer.error("they are deleted\n");
    }
    tell_left(context, suite);
    Ok(Exit::Interrupted)
}

/// Says which workers of the test may be left: nobody else knows of them.
fn tell_left(context: &Context, suite: &Suite<'_, Tested<'_>>) {
    for owner in suite.unclean() {
        context.printer.error(&format!(
            "workers that bear the deployment {owner} may be left; look for them and delete them by hand\n"
        ));
    }
}
