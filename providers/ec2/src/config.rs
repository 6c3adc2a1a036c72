//! What a pool file says of a provider of type `ec2`, and of its workers. Field documentation is user documentation.

use pool_provider::HumanDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many bytes of user data EC2 takes.
pub const MOST_USER_DATA: usize = 16 * 1024;

/// Instances of Amazon EC2 in one region.
///
/// Credentials are no settings: they are found where AWS's own tools find them, in the environment, in profiles, by web
/// identity, from a container's or an instance's role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Config {
    /// The region. By default `AWS_REGION`, and without that `AWS_DEFAULT_REGION`; that of a profile is not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "String",
        regex(pattern = r"^[a-z]{2,}(-[a-z0-9]+)+$"),
        example = &"eu-central-1"
    )]
    pub region: Option<String>,
    /// Where the API is. By default `AWS_ENDPOINT_URL_EC2` or `AWS_ENDPOINT_URL`, and without these the region's own
    /// endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "String",
        regex(pattern = r"^https?://[^\s/?#@]+(/[^\s?#]*)?$"),
        example = &"https://ec2.eu-central-1.amazonaws.com"
    )]
    pub endpoint: Option<String>,
    /// The profile of `~/.aws/config` and `~/.aws/credentials` whose credentials are used. By default `AWS_PROFILE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 128), example = &"ci")]
    pub profile: Option<String>,
    /// Subnets of workers whose pool names none. Slots are spread over them; where one has no room, the next one is
    /// tried. By default AWS chooses one of the default VPC.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = r"^subnet-[0-9a-f]{8,17}$")), example = ["subnet-0a1b2c3d"])]
    pub subnets: Vec<String>,
    /// Security groups of workers whose pool names none. By default the VPC's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = r"^sg-[0-9a-f]{8,17}$")), example = ["sg-0a1b2c3d"])]
    pub security_groups: Vec<String>,
    /// Which of a worker's addresses comes first: in leases, and for health checks that connect.
    #[schemars(example = &"private")]
    pub address: Address,
    /// How long it may take until a listing shows what EC2 has done (its API is "eventually consistent"). Until a new worker
    /// is older than that, its absence from a listing proves nothing; `provisioning.timeout` has to be longer.
    #[schemars(example = &"60s")]
    pub settle: HumanDuration,
    /// Whose account it is, as AWS said: recorded, never written in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub account: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            region: None,
            endpoint: None,
            profile: None,
            subnets: Vec::new(),
            security_groups: Vec::new(),
            address: Address::Private,
            settle: HumanDuration::from_secs(60),
            account: None,
        }
    }
}

impl Config {
    /// Returns where the API is; `None` as long as neither region nor endpoint are known.
    pub fn endpoint(&self) -> Option<String> {
        let given = self.endpoint.as_ref().map(|given| given.trim_end_matches('/').to_owned());
        given.or_else(|| self.region.as_ref().map(|region| of_region("ec2", region)))
    }

    /// Returns where AWS says whose account it is; `None` where the API is not AWS's own.
    pub fn identity_endpoint(&self) -> Option<String> {
        let is_of_aws = self.endpoint.as_deref().is_none_or(is_of_aws);
        let region = self.region.as_ref().filter(|_| is_of_aws);
        region.map(|region| of_region("sts", region))
    }
}

/// Domains of AWS's partitions, by what the names of their regions begin with.
const PARTITIONS: [(&str, &str); 7] = [
    ("cn-", "amazonaws.com.cn"),
    ("eusc-", "amazonaws.eu"),
    ("us-iso-", "c2s.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
    ("us-isof-", "csp.hci.ic.gov"),
    ("", "amazonaws.com"),
];

/// Returns whether this can be the name of a region: what the environment says went through no schema.
pub(crate) fn is_region(region: &str) -> bool {
    let is_part =
        |part: &str| !part.is_empty() && part.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9'));
    let (area, rest) = region.split_once('-').unwrap_or_default();
    area.len() >= 2 && area.chars().all(|c| c.is_ascii_lowercase()) && rest.split('-').all(is_part)
}

/// Returns the region's own endpoint of a service.
fn of_region(service: &str, region: &str) -> String {
    let of = PARTITIONS.iter().find(|(begin, _)| region.starts_with(begin));
    let domain = of.map_or("amazonaws.com", |(_, domain)| domain);
    format!("https://{service}.{region}.{domain}")
}

/// Returns whether an endpoint is AWS's own: of a partition, or one for both versions of IP.
fn is_of_aws(endpoint: &str) -> bool {
    let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let host = host.split(['/', ':']).next().unwrap_or_default();
    let domains = PARTITIONS.iter().map(|(_, domain)| *domain).chain(["api.aws"]);
    domains
        .into_iter()
        .any(|domain| host.strip_suffix(domain).is_some_and(|own| own.ends_with('.')))
}

/// Returns whether `RunInstances` can take this for an image: an id, or a parameter of Systems Manager that holds one.
pub fn is_image(image: &str) -> bool {
    let is_id = |id: &str| {
        (8..=17).contains(&id.len()) && id.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
    };
    image.strip_prefix("ami-").is_some_and(is_id) || image.starts_with("resolve:ssm:")
}

/// Which of a worker's addresses is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Address {
    /// The one in its VPC.
    Private,
    /// The one by which the internet reaches it, where it has one.
    Public,
}

/// What only instances of EC2 have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "EC2 instance")]
pub struct WorkerAttributes {
    /// Types of instances, the best first: the next one is tried where a subnet has no room for the one before. By
    /// default types of the smallest size that has `cpu_cores` and `memory_mb`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        inner(regex(pattern = r"^[a-z][a-z0-9-]*\.[a-z0-9-]+$")),
        example = ["m7i.large", "m6i.large"]
    )]
    pub instance_types: Vec<String>,
    /// Subnets, in place of the provider's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = r"^subnet-[0-9a-f]{8,17}$")), example = ["subnet-0a1b2c3d"])]
    pub subnets: Vec<String>,
    /// Security groups, in place of the provider's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = r"^sg-[0-9a-f]{8,17}$")), example = ["sg-0a1b2c3d"])]
    pub security_groups: Vec<String>,
    /// The key pair that opens a shell on the instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 255), example = &"ci")]
    pub key_name: Option<String>,
    /// The instance profile whose role its programs have: a name, or an ARN.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 2048), example = &"ci-worker")]
    pub instance_profile: Option<String>,
    /// What the instance runs when it starts (cloud-init): a script, or `#cloud-config`. It is recorded and shown, and
    /// every program on the instance can read it: no place for secrets. At most 16 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 16384), example = &"#!/bin/sh\nsystemctl start runner\n")]
    pub user_data: Option<String>,
    /// How the instance is paid for; by default `on_demand`. AWS takes spot instances back when it needs them, jobs or not.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(example = &"on_demand")]
    pub market: Market,
    /// Whether its metadata service wants a session token (IMDSv2); by default it is `required`.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(example = &"required")]
    pub metadata_tokens: MetadataTokens,
}

/// How an instance is paid for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Market {
    /// By the second, at a fixed price.
    #[default]
    OnDemand,
    /// Cheaper, for as long as AWS has room to spare.
    Spot,
}

/// Whether the metadata service wants a session token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetadataTokens {
    /// It does: a program that can be made to fetch an address does not get at the instance's role.
    #[default]
    Required,
    /// It answers without one.
    Optional,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_the_one_that_is_given_or_the_regions() {
        let of = |region: Option<&str>, endpoint: Option<&str>| {
            let own = |text: &str| text.to_owned();
            let config = Config {
                region: region.map(own),
                endpoint: endpoint.map(own),
                ..Config::default()
            };
            config.endpoint()
        };
        assert_eq!(of(Some("eu-west-1"), None).unwrap(), "https://ec2.eu-west-1.amazonaws.com");
        assert_eq!(
            of(Some("cn-north-1"), None).unwrap(),
            "https://ec2.cn-north-1.amazonaws.com.cn"
        );
        assert_eq!(of(Some("eu-west-1"), Some("http://[::1]:5/")).unwrap(), "http://[::1]:5");
        assert_eq!(of(None, None), None);
        let sts = |endpoint: Option<&str>| {
            let config = Config {
                region: Some("eu-west-1".to_owned()),
                endpoint: endpoint.map(str::to_owned),
                ..Config::default()
            };
            config.identity_endpoint()
        };
        assert_eq!(sts(None).unwrap(), "https://sts.eu-west-1.amazonaws.com");
        assert!(sts(Some("https://vpce-1.ec2.eu-west-1.vpce.amazonaws.com")).is_some());
        assert!(sts(Some("https://ec2.eu-west-1.api.aws")).is_some());
        assert_eq!(sts(Some("http://127.0.0.1:5000")), None);
        assert_eq!(sts(Some("https://ec2.amazonaws.com.example.org/amazonaws.com")), None);
        assert_eq!(of_region("sts", "eusc-de-east-1"), "https://sts.eusc-de-east-1.amazonaws.eu");
    }
}
