//! Identity, labels and tags of a worker as an instance's tags, and back. They are part of the call that creates it.
//!
//! | tag              | value                                                            |
//! |------------------|------------------------------------------------------------------|
//! | `Name`           | the object's name, for the console                                 |
//! | `pool.…`         | who the worker is                                                 |
//! | `pool.label.KEY` | the label's value                                                 |
//! | `pool.tag.TAG`   | the positions of the tag in the worker's list: their order is kept |
//!
//! Whatever else an instance is tagged with is somebody else's, and is left alone. Limits are EC2's: 50 tags, keys of 128
//! characters, values of 256.

use std::collections::BTreeMap;

use pool_provider::marks::{
    self, ATTEMPT, DEPLOYMENT, GENERATION, OPERATION, POOL, PROVIDER, SLOT, SPEC_HASH, WORKER,
};
use pool_provider::{CreateRequest, DeploymentId, WorkerName};

const NAME: &str = "Name";
const LABEL: &str = "pool.label.";
const TAG: &str = "pool.tag.";

/// How many tags say who a worker is.
const OWN: usize = 1 + marks::COUNT;
const MOST: usize = 50;
const LONGEST_KEY: usize = 128;
const LONGEST_VALUE: usize = 256;

/// An instance's tags.
pub(crate) type Tags = BTreeMap<String, String>;

/// Who an instance is, read back from its tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: WorkerName,
    pub(crate) attempt: u32,
    pub(crate) operation: i64,
    pub(crate) spec_hash: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) tags: Vec<String>,
}

/// Writes all tags of an instance that is to be created.
pub(crate) fn write(request: &CreateRequest, provider: &str) -> Tags {
    let object = request.name.object_name(&request.owner);
    let own = marks::of(request, provider).into_iter().chain([(NAME, object)]);
    let own = own.map(|(key, value)| (key.to_owned(), value));
    users(&request.spec.labels, &request.spec.tags).into_iter().chain(own).collect()
}

/// Writes what says whose a volume is: it goes with its instance, unless an image says otherwise.
pub(crate) fn of_volume(request: &CreateRequest, provider: &str) -> Tags {
    let all = write(request, provider);
    let own = [NAME, DEPLOYMENT, PROVIDER, WORKER, POOL];
    all.into_iter().filter(|(key, _)| own.contains(&key.as_str())).collect()
}

/// Writes the tags that a worker's labels and tags are.
fn users(labels: &BTreeMap<String, String>, tags: &[String]) -> Tags {
    let mut written: Tags =
        labels.iter().map(|(key, value)| (format!("{LABEL}{key}"), value.clone())).collect();
    for (position, tag) in tags.iter().enumerate() {
        let positions = written.entry(format!("{TAG}{tag}")).or_default();
        if !positions.is_empty() {
            positions.push(',');
        }
        positions.push_str(&position.to_string());
    }
    written
}

/// Returns whether an instance is ours, and its tags name no other worker.
pub(crate) fn may_be(tags: &Tags, owner: &DeploymentId, provider: &str, name: &WorkerName) -> bool {
    let is = |key: &str, wanted: &str| tags.get(key).is_some_and(|value| value == wanted);
    let names_another = self::name(tags).is_some_and(|named| named != *name);
    is(DEPLOYMENT, owner.as_str()) && is(PROVIDER, provider) && !names_another
}

/// Reads who an instance is that `provider` created for `owner`; `None` when its tags do not say so. What else is lost of
/// them is a difference like any other: no spec has an empty hash, and no attempt is the zeroth.
pub(crate) fn read(tags: &Tags, owner: &DeploymentId, provider: &str) -> Option<Identity> {
    let get = |key: &str| tags.get(key).map(String::as_str);
    if get(DEPLOYMENT) != Some(owner.as_str()) || get(PROVIDER) != Some(provider) {
        return None;
    }
    Some(Identity {
        name: name(tags)?,
        attempt: get(ATTEMPT).and_then(|number| number.parse().ok()).unwrap_or_default(),
        operation: get(OPERATION).and_then(|number| number.parse().ok()).unwrap_or_default(),
        spec_hash: get(SPEC_HASH).unwrap_or_default().to_owned(),
        labels: below(tags, LABEL).map(|(key, value)| (key.to_owned(), value.clone())).collect(),
        tags: in_order(tags),
    })
}

/// Reads a worker's name, which is written twice.
fn name(tags: &Tags) -> Option<WorkerName> {
    let get = |key: &str| tags.get(key).map(String::as_str);
    let whole = get(WORKER).and_then(|name| name.parse().ok());
    whole.or_else(|| {
        let (pool, slot, generation) = (get(POOL)?, get(SLOT)?, get(GENERATION)?);
        format!("{pool}-{slot}-{generation}").parse().ok()
    })
}

fn below<'t>(tags: &'t Tags, prefix: &'t str) -> impl Iterator<Item = (&'t str, &'t String)> {
    tags.iter().filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, value)))
}

/// What somebody else has changed comes last.
fn in_order(tags: &Tags) -> Vec<String> {
    let mut placed: Vec<(usize, &str)> = below(tags, TAG)
        .flat_map(|(tag, positions)| {
            let place = |position: &str| position.parse().unwrap_or(usize::MAX);
            positions.split(',').map(move |position| (place(position), tag))
        })
        .collect();
    placed.sort_unstable();
    placed.into_iter().map(|(_, tag)| tag.to_owned()).collect()
}

/// Returns the tags that a worker's labels and tags are, and which of those that its instance has are none of them.
pub(crate) fn changes(
    now: &Tags,
    labels: &BTreeMap<String, String>,
    tags: &[String],
) -> (Tags, Vec<String>) {
    let wanted = users(labels, tags);
    let is_users = |key: &String| key.starts_with(LABEL) || key.starts_with(TAG);
    let gone = now.keys().filter(|key| is_users(key) && !wanted.contains_key(*key));
    let gone = gone.cloned().collect();
    (wanted, gone)
}

/// Returns what EC2 does not take of a worker's labels and tags; `None` when it takes them all.
pub fn wrong_tags(labels: &BTreeMap<String, String>, tags: &[String]) -> Option<String> {
    let written = users(labels, tags);
    if written.len() > MOST - OWN {
        return Some(format!(
            "{} labels and tags are more than the {} that an instance has room for",
            written.len(),
            MOST - OWN
        ));
    }
    written.into_iter().find_map(|(key, value)| {
        let kind = if key.starts_with(LABEL) { "label" } else { "tag" };
        let named = key.strip_prefix(LABEL).or(key.strip_prefix(TAG)).unwrap_or(&key);
        if key.chars().count() > LONGEST_KEY {
            let most = LONGEST_KEY - (key.len() - named.len());
            return Some(format!("the {kind} `{named}` is longer than {most} characters"));
        }
        let is_long = value.chars().count() > LONGEST_VALUE;
        is_long.then(|| {
            format!("the value of the {kind} `{named}` is longer than {LONGEST_VALUE} characters")
        })
    })
}

#[cfg(test)]
mod tests {
    use pool_provider::{Generation, Progress, Slot, WorkerSpec};

    use super::*;

    fn request() -> CreateRequest {
        CreateRequest {
            owner: DeploymentId::from_random([7; 16]),
            name: WorkerName::new("ci".parse().unwrap(), Slot(3), Generation(2)),
            attempt: 4,
            passed_over: 0,
            operation: 17,
            token: "t".into(),
            spec: WorkerSpec {
                labels: [
                    ("os".to_owned(), "linux".to_owned()),
                    ("empty".to_owned(), String::new()),
                ]
                .into(),
                tags: ["z", "a", "z"].map(str::to_owned).to_vec(),
                ..WorkerSpec::default()
            },
            spec_hash: "v1:ab".into(),
            progress: Progress::default(),
            timeout: std::time::Duration::from_secs(1),
        }
    }

    #[test]
    fn what_is_written_is_read_back_in_its_order() {
        let request = request();
        let written = write(&request, "ec2");
        assert_eq!(written[NAME], "ci-3-2-070707");
        assert_eq!(written["pool.tag.z"], "0,2");
        let identity = read(&written, &request.owner, "ec2").unwrap();
        assert_eq!((identity.attempt, identity.operation), (4, 17));
        assert_eq!(identity.labels, request.spec.labels);
        assert_eq!(identity.tags, request.spec.tags);
        assert_eq!(read(&written, &request.owner, "other"), None);
        assert_eq!(read(&written, &DeploymentId::from_random([8; 16]), "ec2"), None);
    }

    #[test]
    fn a_worker_is_known_by_what_is_left_of_its_tags() {
        let request = request();
        let left = |gone: &[&str]| {
            let mut tags = write(&request, "ec2");
            tags.retain(|key, _| !gone.contains(&key.as_str()));
            read(&tags, &request.owner, "ec2")
        };
        assert_eq!(left(&[WORKER]).unwrap(), left(&[]).unwrap());
        assert_eq!(left(&[POOL, SLOT, GENERATION]).unwrap(), left(&[]).unwrap());
        let damaged = left(&[SPEC_HASH, ATTEMPT, OPERATION]).unwrap();
        assert_eq!(damaged.name, request.name);
        assert_eq!((damaged.spec_hash.as_str(), damaged.attempt, damaged.operation), ("", 0, 0));
        assert_eq!(left(&[WORKER, SLOT]), None);
    }

    #[test]
    fn an_update_sets_what_is_asked_for_and_leaves_others_tags_alone() {
        let mut now = write(&request(), "ec2");
        now.insert("CostCenter".to_owned(), "42".to_owned());
        let labels = [("os".to_owned(), "mac".to_owned())].into();
        let (set, gone) = changes(&now, &labels, &["a".to_owned()]);
        let set: Vec<String> = set.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(set, ["pool.label.os=mac", "pool.tag.a=0"]);
        assert_eq!(gone, ["pool.label.empty", "pool.tag.z"]);
    }

    #[test]
    fn what_an_instance_has_no_room_for_is_told() {
        let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(wrong_tags(&label("os", "linux"), &[]), None);
        assert_eq!(wrong_tags(&label(&"ü".repeat(117), &"v".repeat(256)), &[]), None);
        let why = wrong_tags(&label(&"k".repeat(118), ""), &[]).unwrap();
        assert!(why.ends_with("is longer than 117 characters"), "{why}");
        let why = wrong_tags(&label("os", &"v".repeat(257)), &[]).unwrap();
        assert!(why.contains("the value of the label `os`"), "{why}");
        let tags: Vec<String> = (0..41).map(|number| format!("t{number}")).collect();
        assert!(wrong_tags(&BTreeMap::new(), &tags).unwrap().contains("more than the 40"));
        assert_eq!(wrong_tags(&BTreeMap::new(), &tags[1..]), None);
    }
}
