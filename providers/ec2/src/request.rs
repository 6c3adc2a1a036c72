//! What `RunInstances` is asked for: one instance, with everything that identifies it.
//!
//! Input: the request and the provider's settings. Output: the parameters, in one place. Which place is a matter of how
//! many of them were passed over: the same attempt is always made in the same place, because a client token that comes
//! with other parameters is refused, and one in another zone is not recognised at all.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pool_provider::{CreateRequest, ProviderError, WorkerSpec};

use crate::config::{Config, Market, MetadataTokens, WorkerAttributes};
use crate::refusal::Others;
use crate::sizes;
use crate::tags::{self, Tags};

/// Parameters of a call, by name.
pub(crate) type Parameters = Vec<(String, String)>;

/// The longest client token.
const LONGEST_TOKEN: usize = 64;

/// Where one attempt is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) instance_type: String,
    /// `None` leaves it to AWS: one of the default VPC.
    pub(crate) subnet: Option<String>,
    /// What other places there are.
    pub(crate) others: Others,
}

/// Returns where an attempt is made. The best type is tried in every subnet before the next type; slots begin with
/// different subnets, so that a pool is spread over them.
///
/// # Errors
/// When there is no such place.
pub(crate) fn place(
    spec: &WorkerSpec,
    attributes: &WorkerAttributes,
    config: &Config,
    (slot, passed_over): (u32, u32),
) -> Result<Place, ProviderError> {
    let types = match attributes.instance_types.as_slice() {
        [] => sizes::fitting(spec.cpu_cores, spec.memory_mb),
        named => named.to_vec(),
    };
    let subnets = or(&attributes.subnets, &config.subnets);
    let each = subnets.len().max(1);
    let all = types.len() * each;
    if all == 0 {
        return Err(ProviderError::InvalidSpec(format!(
            "no known type of instance has {} cores and {} MiB; name some in `worker_config.ec2.instance_types`",
            spec.cpu_cores, spec.memory_mb
        )));
    }
    let turn = passed_over as usize % all;
    let subnet = (turn % each + slot as usize) % each;
    Ok(Place {
        instance_type: types[turn / each].clone(),
        subnet: subnets.get(subnet).cloned(),
        others: match all {
            1 => Others::None,
            _ if turn + 1 < all => Others::Follow,
            _ => Others::Tried,
        },
    })
}

fn or<'l>(own: &'l [String], general: &'l [String]) -> &'l [String] {
    if own.is_empty() { general } else { own }
}

/// Reads what only instances have.
///
/// # Errors
/// When it is something else.
pub(crate) fn attributes(spec: &WorkerSpec) -> Result<WorkerAttributes, ProviderError> {
    serde_json::from_value(spec.attributes.clone().into())
        .map_err(|error| ProviderError::InvalidSpec(format!("worker_config.ec2: {error}")))
}

/// Builds the parameters of `RunInstances`.
///
/// # Errors
/// When the spec can never become an instance.
pub(crate) fn parameters(
    request: &CreateRequest,
    attributes: &WorkerAttributes,
    (config, provider): (&Config, &str),
    place: &Place,
) -> Result<Parameters, ProviderError> {
    let spec = &request.spec;
    check(request)?;
    let mut parameters = Vec::new();
    let mut add = |name: &str, value: &str| parameters.push((name.to_owned(), value.to_owned()));
    add("ImageId", &spec.image);
    add("InstanceType", &place.instance_type);
    add("MinCount", "1");
    add("MaxCount", "1");
    add("ClientToken", &request.token);
    // What its own system shuts down is gone: nobody starts it again.
    add("InstanceInitiatedShutdownBehavior", "terminate");
    add("MetadataOptions.HttpEndpoint", "enabled");
    let tokens = match attributes.metadata_tokens {
        MetadataTokens::Required => "required",
        MetadataTokens::Optional => "optional",
    };
    add("MetadataOptions.HttpTokens", tokens);
    if let Some(subnet) = &place.subnet {
        add("SubnetId", subnet);
    }
    let groups = or(&attributes.security_groups, &config.security_groups);
    for (number, group) in (1..).zip(groups) {
        add(&format!("SecurityGroupId.{number}"), group);
    }
    if let Some(key) = &attributes.key_name {
        add("KeyName", key);
    }
    if let Some(profile) = &attributes.instance_profile {
        let by = if profile.starts_with("arn:") { "Arn" } else { "Name" };
        add(&format!("IamInstanceProfile.{by}"), profile);
    }
    if let Some(data) = &attributes.user_data {
        add("UserData", &STANDARD.encode(data));
    }
    if attributes.market == Market::Spot {
        add("InstanceMarketOptions.MarketType", "spot");
        add("InstanceMarketOptions.SpotOptions.SpotInstanceType", "one-time");
        add("InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior", "terminate");
    }
    add("TagSpecification.1.ResourceType", "instance");
    add_tags(&mut parameters, "TagSpecification.1.Tag", &tags::write(request, provider));
    parameters.push(("TagSpecification.2.ResourceType".to_owned(), "volume".to_owned()));
    add_tags(&mut parameters, "TagSpecification.2.Tag", &tags::of_volume(request, provider));
    Ok(parameters)
}

/// Adds tags as a list of keys and values.
pub(crate) fn add_tags(parameters: &mut Parameters, list: &str, tags: &Tags) {
    for (number, (key, value)) in (1..).zip(tags) {
        parameters.push((format!("{list}.{number}.Key"), key.clone()));
        parameters.push((format!("{list}.{number}.Value"), value.clone()));
    }
}

/// Adds a filter that lets through what has one of these values.
pub(crate) fn add_filter(parameters: &mut Parameters, number: usize, name: &str, values: &[&str]) {
    parameters.push((format!("Filter.{number}.Name"), name.to_owned()));
    for (value_number, value) in (1..).zip(values) {
        parameters.push((format!("Filter.{number}.Value.{value_number}"), (*value).to_owned()));
    }
}

fn check(request: &CreateRequest) -> Result<(), ProviderError> {
    let (spec, name) = (&request.spec, &request.name);
    let refuse = |why: String| Err(ProviderError::InvalidSpec(format!("{name}: {why}")));
    if request.token.len() > LONGEST_TOKEN || !request.token.is_ascii() {
        return refuse(format!("its token is no text of at most {LONGEST_TOKEN} ASCII characters"));
    }
    if !spec.command.is_empty() || !spec.environment.is_empty() {
        let why =
            "an instance is given no command and no environment; its `user_data` says what it runs";
        return refuse(why.to_owned());
    }
    match tags::wrong_tags(&spec.labels, &spec.tags) {
        Some(why) => refuse(why),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(types: &[&str], subnets: &[&str], slot: u32, count: u32) -> Vec<String> {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let attributes =
            WorkerAttributes { instance_types: own(types), ..WorkerAttributes::default() };
        let config = Config { subnets: own(subnets), ..Config::default() };
        let spec = WorkerSpec { cpu_cores: 2, memory_mb: 8192, ..WorkerSpec::default() };
        (0..count)
            .map(|passed_over| {
                let place = place(&spec, &attributes, &config, (slot, passed_over)).unwrap();
                let last = if place.others == Others::Follow { "" } else { "." };
                let subnet = place.subnet.as_deref().unwrap_or("-");
                format!("{} {subnet}{last}", place.instance_type)
            })
            .collect()
    }

    #[test]
    fn the_best_type_is_tried_in_every_subnet_before_the_next_one() {
        assert_eq!(places(&["a", "b"], &["x", "y"], 0, 5), ["a x", "a y", "b x", "b y.", "a x"]);
        // Another slot begins with another subnet.
        assert_eq!(places(&["a", "b"], &["x", "y"], 1, 4), ["a y", "a x", "b y", "b x."]);
        assert_eq!(places(&["a"], &[], 7, 2), ["a -.", "a -."]);
        assert_eq!(places(&[], &[], 0, 3), ["m7i.large -", "m6i.large -", "m5.large -."]);
    }

    #[test]
    fn what_no_known_type_has_wants_names() {
        let spec = WorkerSpec { cpu_cores: 500, memory_mb: 1, ..WorkerSpec::default() };
        let found =
            place(&spec, &WorkerAttributes::default(), &Config::default(), (0, 0)).unwrap_err();
        assert!(found.to_string().contains("name some in `worker_config.ec2.instance_types`"));
    }
}
