//! Every rule that a config can break, by its name: what tools that show findings by rule say of it.
//!
//! Names are stable. A test compares this list with the names in the code.

/// A rule's name, and what it asks for.
pub type Rule = (&'static str, &'static str);

/// The rules, by name.
pub const RULES: [Rule; 46] = [
    ("ambiguous-override", "Two environment variables must not set the same field."),
    ("bad-alias", "An alias must not refer to itself."),
    ("bad-format", "A text must have the form that its field wants."),
    ("bad-key", "The keys of a mapping are texts."),
    ("bad-merge", "`<<` merges mappings."),
    (
        "bad-name",
        "A name is a lower-case letter and at most 39 lower-case letters, digits, - and _.",
    ),
    ("bad-override", "A POOL__ variable names a field of a pool, and holds a value that fits it."),
    ("bad-secret", "A secret names one place: from_env or from_file."),
    ("bad-variable", "`${VAR}` needs its closing brace."),
    ("bad-variable-name", "A variable of an environment has a name that shells take."),
    ("docker-socket", "A job that gets the engine's socket can do everything that the engine can."),
    ("duplicate-key", "A key is given once in a mapping."),
    ("duplicate-pool", "A pool id is given once in all files."),
    ("duplicate-provider", "A provider is declared once in all files."),
    ("empty", "What must not be empty is not."),
    ("empty-folder", "A folder that is named has files in it."),
    ("health-check", "A health check has the keys of its type, and times that fit each other."),
    ("invalid", "A value is what its field wants."),
    ("leases", "Lease settings fit each other and the provider."),
    ("missing-key", "What is required is there."),
    ("no-docker", "`docker_enabled` is for workers that can have an engine's socket."),
    ("no-network", "Workers without a network have no ports and are not probed by network."),
    ("no-room-to-update", "`max_surge` and `max_unavailable` leave room for a replacement."),
    ("not-an-option", "A value is one of those that its field knows."),
    ("not-for-instances", "An instance of EC2 has what EC2 takes, and as much as is asked for."),
    ("not-json", "A number is one that JSON can hold."),
    ("not-of-this-provider", "A worker type is one that the provider says it has."),
    ("not-of-this-type", "A key is used with the type of provider that it is for."),
    ("not-utf8", "Files are UTF-8."),
    ("nul-byte", "A text holds no NUL byte."),
    ("out-of-range", "A number is within its bounds."),
    ("reserved-variable", "Variables that begin with POOL_ are the provider's."),
    ("short-timeout", "A new worker has time to pass its health check."),
    ("syntax", "A file is YAML or JSON."),
    ("too-deep", "A document is not nested deeper than 64 levels."),
    ("too-large", "A document is not larger than any config."),
    ("unknown-key", "A key is one that is known in its place."),
    ("unknown-provider", "A pool's provider is declared, or there by itself."),
    ("unknown-tag", "A tag is one that YAML defines."),
    ("unreadable", "What is named can be read."),
    ("unset-variable", "A variable that a text uses is set, or has a default."),
    ("wrong-port", "Ports are distinct and within their range in every slot."),
    ("wrong-type", "A value is of the type that its field wants."),
    ("wrong-worker-type", "A pool's provider has workers of its type."),
    ("zero-rate", "A rate is over some time."),
    ("zero-timeout", "A timeout is longer than nothing."),
];

/// Returns what a rule asks for.
pub fn meaning(rule: &str) -> &'static str {
    RULES.iter().find(|(name, _)| *name == rule).map_or("", |(_, meaning)| meaning)
}
