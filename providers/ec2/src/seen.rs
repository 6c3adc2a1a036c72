//! What an instance is as a worker. Asks nobody.

use std::collections::BTreeMap;

use pool_provider::{ObservedStatus, ObservedWorker};

use crate::answer::Instance;
use crate::config::Address;
use crate::tags::Identity;

/// Returns the worker that an instance is.
pub(crate) fn worker(identity: Identity, instance: &Instance, first: Address) -> ObservedWorker {
    let Identity { name, attempt, operation, spec_hash, labels, tags } = identity;
    let status = match instance.instance_state.name.as_str() {
        "pending" => ObservedStatus::Starting,
        "shutting-down" | "terminated" => ObservedStatus::Stopping,
        // A stopped one can be started again, and costs meanwhile: probes say that it is not well.
        _ => ObservedStatus::Running,
    };
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (private, public) = (given(&instance.private_ip_address), given(&instance.ip_address));
    let addresses = match first {
        Address::Private => [private.clone(), public.clone()],
        Address::Public => [public.clone(), private.clone()],
    };
    let market = given(&instance.instance_lifecycle).unwrap_or_else(|| "on_demand".to_owned());
    let attributes = [
        ("instance_id", Some(instance.instance_id.clone())),
        ("instance_type", Some(instance.instance_type.clone()).filter(|name| !name.is_empty())),
        ("zone", given(&instance.placement.availability_zone)),
        ("subnet", given(&instance.subnet_id)),
        ("private_ip", private),
        ("public_ip", public),
        ("private_dns", given(&instance.private_dns_name)),
        ("public_dns", given(&instance.dns_name)),
        ("market", Some(market)),
    ];
    let attributes: BTreeMap<String, String> =
        attributes.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    ObservedWorker {
        provider_id: instance.instance_id.clone(),
        name,
        attempt,
        operation,
        spec_hash,
        status,
        labels,
        tags,
        addresses: addresses.into_iter().flatten().collect(),
        attributes,
    }
}
