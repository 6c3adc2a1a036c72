//! What the API answers, as types: the parts that are used here, and nothing that has to be there but an id.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::tags::Tags;

/// A list, as the API writes one.
#[derive(Debug, Deserialize)]
pub(crate) struct List<T> {
    #[serde(default = "Vec::new")]
    item: Vec<T>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { item: Vec::new() }
    }
}

/// `RunInstances`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Run {
    #[serde(default)]
    instances_set: List<Instance>,
}

impl Run {
    pub(crate) fn into_instance(self) -> Option<Instance> {
        self.instances_set.item.into_iter().next()
    }
}

/// `DescribeInstances`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Described {
    #[serde(default)]
    reservation_set: List<Run>,
    #[serde(default)]
    next_token: Option<String>,
}

impl Described {
    /// Returns the instances, and the next page if there is one.
    pub(crate) fn into_page(self) -> (Vec<Instance>, Option<String>) {
        let reservations = self.reservation_set.item.into_iter();
        let instances = reservations.flat_map(|reservation| reservation.instances_set.item);
        (instances.collect(), self.next_token.filter(|token| !token.is_empty()))
    }
}

/// One instance.
#[derive(Debug, Clone, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names are the API's")]
#[serde(rename_all = "camelCase")]
pub(crate) struct Instance {
    pub(crate) instance_id: String,
    #[serde(default)]
    pub(crate) instance_state: State,
    #[serde(default)]
    pub(crate) state_reason: Option<Reason>,
    #[serde(default)]
    pub(crate) instance_type: String,
    #[serde(default)]
    pub(crate) placement: Placement,
    #[serde(default)]
    pub(crate) subnet_id: Option<String>,
    #[serde(default)]
    pub(crate) private_ip_address: Option<String>,
    #[serde(default)]
    pub(crate) ip_address: Option<String>,
    #[serde(default)]
    pub(crate) private_dns_name: Option<String>,
    #[serde(default)]
    pub(crate) dns_name: Option<String>,
    #[serde(default)]
    pub(crate) instance_lifecycle: Option<String>,
    #[serde(default, deserialize_with = "tags")]
    pub(crate) tag_set: Tags,
}

/// Where an instance is in its life.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct State {
    #[serde(default)]
    pub(crate) name: String,
}

impl State {
    /// It never runs again.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.name.as_str(), "shutting-down" | "terminated")
    }
}

/// Why an instance is in its state.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Reason {
    #[serde(default)]
    pub(crate) message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Placement {
    #[serde(default)]
    pub(crate) availability_zone: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Tag {
    key: String,
    #[serde(default)]
    value: String,
}

fn tags<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Tags, D::Error> {
    let list = List::<Tag>::deserialize(deserializer)?;
    Ok(list.item.into_iter().map(|tag| (tag.key, tag.value)).collect())
}

/// `DescribeInstanceStatus`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Statuses {
    #[serde(default)]
    instance_status_set: List<Status>,
}

impl Statuses {
    pub(crate) fn by_id(self) -> BTreeMap<String, Status> {
        let statuses = self.instance_status_set.item.into_iter();
        statuses.map(|status| (status.instance_id.clone(), status)).collect()
    }
}

/// What AWS's own checks say of an instance.
#[derive(Debug, Clone, Default, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names are the API's")]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    pub(crate) instance_id: String,
    pub(crate) instance_state: State,
    /// The host, its network and power.
    pub(crate) system_status: Check,
    /// The instance's own system.
    pub(crate) instance_status: Check,
    pub(crate) events_set: List<Event>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Check {
    pub(crate) status: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Event {
    code: String,
    description: String,
    not_before: String,
}

impl Clone for List<Event> {
    fn clone(&self) -> Self {
        Self { item: self.item.clone() }
    }
}

impl Status {
    /// Returns when and why AWS is going to end the instance.
    pub(crate) fn end(&self) -> Option<String> {
        let is_over = |event: &&Event| {
            event.description.starts_with("[Completed]")
                || event.description.starts_with("[Canceled]")
        };
        let ends = |event: &&Event| {
            matches!(event.code.as_str(), "instance-retirement" | "instance-stop")
                && !is_over(event)
        };
        let event = self.events_set.item.iter().find(ends)?;
        Some(format!("AWS is going to end it ({}, not before {})", event.code, event.not_before))
    }
}

/// `GetCallerIdentity`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Identity {
    get_caller_identity_result: Caller,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Caller {
    account: String,
}

impl Identity {
    pub(crate) fn into_account(self) -> String {
        self.get_caller_identity_result.account
    }
}

/// The answers to calls whose effect is all there is.
#[derive(Debug, Deserialize)]
pub(crate) struct Done {}

/// What the API says when it refuses.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Refused {
    /// EC2's
    errors: Option<Errors>,
    /// That of STS
    error: Option<ErrorItem>,
}

#[derive(Debug, Deserialize)]
struct Errors {
    #[serde(rename = "Error")]
    error: ErrorItem,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ErrorItem {
    code: String,
    #[serde(default)]
    message: String,
}

impl Refused {
    /// Returns the code and the message, if there are any.
    pub(crate) fn into_parts(self) -> Option<(String, String)> {
        let error = self.errors.map(|errors| errors.error).or(self.error)?;
        Some((error.code, error.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whatever_else_is_in_them() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
            <DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
              <requestId>r</requestId>
              <reservationSet><item><reservationId>r-1</reservationId><groupSet/>
                <instancesSet>
                  <item><instanceId>i-1</instanceId><instanceState><code>16</code><name>running</name></instanceState>
                    <productCodes/><instanceType>m7i.large</instanceType>
                    <placement><availabilityZone>eu-central-1a</availabilityZone></placement>
                    <privateIpAddress>10.0.0.5</privateIpAddress><dnsName/>
                    <tagSet><item><key>a</key><value/></item><item><key>b</key><value>x &amp; y</value></item></tagSet>
                  </item>
                  <item><instanceId>i-2</instanceId></item>
                </instancesSet></item>
                <item><instancesSet/></item>
              </reservationSet><nextToken>n</nextToken>
            </DescribeInstancesResponse>"#;
        let (found, next) = quick_xml::de::from_str::<Described>(text).unwrap().into_page();
        assert_eq!(next.as_deref(), Some("n"));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].instance_state.name, "running");
        assert_eq!(found[0].placement.availability_zone.as_deref(), Some("eu-central-1a"));
        assert_eq!(found[0].tag_set["b"], "x & y");
        assert_eq!(found[0].tag_set["a"], "");
        assert!(found[1].tag_set.is_empty());

        let empty = "<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>";
        let (found, next) = quick_xml::de::from_str::<Described>(empty).unwrap().into_page();
        assert!(found.is_empty() && next.is_none());
    }

    #[test]
    fn a_refusal_is_read() {
        let text = "<?xml version=\"1.0\"?><Response><Errors><Error><Code>AuthFailure</Code><Message>no</Message>\
                    </Error></Errors><RequestID>1</RequestID></Response>";
        let refused = |text| quick_xml::de::from_str::<Refused>(text).unwrap().into_parts();
        let parts = Some(("AuthFailure".to_owned(), "no".to_owned()));
        assert_eq!(refused(text), parts);
        let of_sts = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
                      <Code>AuthFailure</Code><Message>no</Message></Error><RequestId>1</RequestId></ErrorResponse>";
        assert_eq!(refused(of_sts), parts);
        assert_eq!(refused("<html><body>Bad gateway</body></html>"), None);
    }

    #[test]
    fn only_events_that_end_an_instance_and_are_to_come_count() {
        let status = |events: &str| {
            let text = format!(
                "<R><instanceStatusSet><item><instanceId>i-1</instanceId><eventsSet>{events}</eventsSet></item>\
                 </instanceStatusSet></R>"
            );
            let statuses = quick_xml::de::from_str::<Statuses>(&text).unwrap().by_id();
            statuses["i-1"].end()
        };
        let event = |code: &str, description: &str| {
            format!(
                "<item><code>{code}</code><description>{description}</description><notBefore>then</notBefore></item>"
            )
        };
        assert_eq!(status(""), None);
        assert_eq!(status(&event("system-reboot", "scheduled")), None);
        assert_eq!(status(&event("instance-stop", "[Completed] done")), None);
        let both = event("system-reboot", "x") + &event("instance-retirement", "degraded hardware");
        assert!(status(&both).unwrap().contains("instance-retirement, not before then"));
    }
}
