//! What the API's error codes mean; see "Error codes for the Amazon EC2 API".
//!
//! A code decides, never a status: EC2 answers 400 to most of what it refuses. The message is AWS's own, with what to do
//! where it does not say.

use std::time::Duration;

use pool_provider::ProviderError;

/// Why a call did not do what it was to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The API says no.
    Code { code: String, message: String, retry_after: Option<Duration> },
    /// It was never sent.
    NotSent(String),
    /// There are no credentials to sign it with.
    NoCredentials(String),
    /// Whether it was done is not known.
    Lost(String),
}

/// The other places where an attempt could be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Others {
    /// There are none.
    None,
    /// The next attempt goes to another one.
    Follow,
    /// All have been tried.
    Tried,
}

/// What an error code is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    TooMany,
    Room,
    /// There is no such type of instance there.
    Type,
    Quota,
    Access,
    /// The service is not well: nobody knows what became of the call.
    Service,
    Passing,
    NotFound,
    Request,
}

/// Codes, and what they are about; whatever is none of them is about the request. A code that ends in `*` stands for all
/// that begin so; the first one that fits decides.
const CODES: [(&str, About); 48] = [
    ("RequestLimitExceeded", About::TooMany),
    ("Throttling*", About::TooMany),
    ("RequestThrottled*", About::TooMany),
    ("EC2ThrottledException", About::TooMany),
    ("SlowDown", About::TooMany),
    ("ClientRequestLimitExceeded", About::TooMany),
    ("InsufficientInstanceCapacity", About::Room),
    ("InsufficientHostCapacity", About::Room),
    ("InsufficientReservedInstanceCapacity", About::Room),
    ("InsufficientCapacity*", About::Room),
    ("InsufficientVolumeCapacity", About::Room),
    ("InsufficientFreeAddressesInSubnet", About::Room),
    ("InsufficientAddressCapacity", About::Room),
    ("ReservationCapacityExceeded", About::Room),
    ("UnfulfillableCapacity", About::Room),
    ("SpotMaxPriceTooLow", About::Room),
    ("MaxSpotInstanceCountExceeded", About::Quota),
    ("PendingVerification", About::Quota),
    ("InstanceLimitExceeded", About::Quota),
    ("VcpuLimitExceeded", About::Quota),
    ("TagLimitExceeded", About::Request),
    ("*LimitExceeded", About::Quota),
    ("AuthFailure*", About::Access),
    ("UnauthorizedOperation", About::Access),
    ("AccessDenied*", About::Access),
    ("InvalidClientTokenId", About::Access),
    ("InvalidAccessKeyId", About::Access),
    ("InvalidSecurity.*", About::Access),
    ("UnrecognizedClientException", About::Access),
    ("SignatureDoesNotMatch", About::Access),
    ("IncompleteSignature*", About::Access),
    ("MissingAuthenticationToken*", About::Access),
    ("RequestExpired", About::Access),
    ("ExpiredToken*", About::Access),
    ("OptInRequired", About::Access),
    ("Blocked", About::Access),
    ("InternalError", About::Service),
    ("InternalFailure", About::Service),
    ("InternalServiceError*", About::Service),
    ("ServerInternal", About::Service),
    ("Unavailable", About::Service),
    ("ServiceUnavailable*", About::Service),
    ("RequestTimeout*", About::Service),
    ("ConcurrentTagAccess", About::Passing),
    ("IncorrectInstanceState", About::Passing),
    ("IncorrectState*", About::Passing),
    ("ResourceInUse*", About::Passing),
    ("InvalidInstanceID.*", About::NotFound),
];

fn about(code: &str, message: &str) -> About {
    // A type that a zone or a region does not have. A type that there is nowhere is an `InvalidParameterValue`.
    if code == "Unsupported" {
        return About::Type;
    }
    // An image that belongs to somebody else.
    if code == "AuthFailure" && message.starts_with("Not authorized for") {
        return About::Request;
    }
    let fits = |pattern: &str| match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(start), _) => code.starts_with(start),
        (None, Some(end)) => code.ends_with(end),
        (None, None) => code == pattern,
    };
    CODES.iter().find(|(pattern, _)| fits(pattern)).map_or(About::Request, |(_, about)| *about)
}

impl Refusal {
    /// Returns the API's code, if it was the API that refused.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Code { code, .. } => Some(code),
            Self::NotSent(_) | Self::NoCredentials(_) | Self::Lost(_) => None,
        }
    }

    /// Returns what was said, on one line.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Code { code, message, .. } => format!("{code}: {}", shortened(message)),
            Self::NotSent(text) | Self::NoCredentials(text) | Self::Lost(text) => text.clone(),
        }
    }

    /// The credentials are no longer right, or never were; a policy that does not allow something is another matter.
    pub(crate) fn is_about_credentials(&self) -> bool {
        let refused = ["AuthFailure", "InvalidClientTokenId", "InvalidAccessKeyId"];
        // EC2 says `RequestExpired` where others say `ExpiredToken`.
        let outdated = ["SignatureDoesNotMatch", "UnrecognizedClientException", "RequestExpired"];
        matches!(self, Self::Code { code, message, .. } if about(code, message) == About::Access
            && (refused.contains(&code.as_str())
                || outdated.contains(&code.as_str())
                || code.starts_with("ExpiredToken")))
    }

    /// The API does not know an instance by its id.
    pub(crate) fn is_unknown_instance(&self) -> bool {
        self.code().is_some_and(|code| code.starts_with("InvalidInstanceID."))
    }

    pub(crate) fn is_too_many(&self) -> bool {
        matches!(self, Self::Code { code, message, .. } if about(code, message) == About::TooMany)
    }

    /// Returns the same, with `gap` as the least that is waited.
    pub(crate) fn not_before(self, gap: Duration) -> Self {
        match self {
            Self::Code { code, message, retry_after } => {
                let retry_after = Some(retry_after.map_or(gap, |asked| asked.max(gap)));
                Self::Code { code, message, retry_after }
            }
            other => other,
        }
    }

    /// What the refusal of a call means that only looks.
    pub(crate) fn of_look(&self, doing: &str) -> ProviderError {
        match self.of_change(doing) {
            ProviderError::UnknownOutcome(text) => ProviderError::Transient(text),
            error => error,
        }
    }

    /// What the refusal of a call means that changes something.
    pub(crate) fn of_change(&self, doing: &str) -> ProviderError {
        self.of_create(doing, Others::None)
    }

    /// What the refusal of a create means where there are other places.
    pub(crate) fn of_create(&self, doing: &str, others: Others) -> ProviderError {
        let text = format!("{doing}: {}", self.text());
        let elsewhere = others == Others::Follow;
        match self {
            Self::Lost(_) => ProviderError::UnknownOutcome(text),
            Self::NotSent(_) => ProviderError::Transient(text),
            Self::NoCredentials(_) => ProviderError::Unauthenticated(text),
            Self::Code { code, message, retry_after } => match about(code, message) {
                About::TooMany => {
                    ProviderError::RateLimited { message: text, retry_after: *retry_after }
                }
                About::Room => ProviderError::OutOfCapacity { message: text, elsewhere },
                About::Type if others != Others::None => {
                    ProviderError::OutOfCapacity { message: text, elsewhere }
                }
                About::Quota => ProviderError::Quota(text),
                About::Access => ProviderError::Unauthenticated(format!("{text}{}", advice(code))),
                About::Service => ProviderError::UnknownOutcome(text),
                About::Passing => ProviderError::Transient(text),
                About::NotFound => ProviderError::NotFound(text),
                About::Request | About::Type => {
                    ProviderError::InvalidSpec(format!("{text}{}", advice(code)))
                }
            },
        }
    }
}

/// What to do where AWS does not say so.
fn advice(code: &str) -> &'static str {
    match code {
        "UnauthorizedOperation" => "; the credentials are right, their policy does not allow it",
        "RequestExpired" => {
            "; log in again (`aws sso login`), unless this machine's clock is wrong"
        }
        "SignatureDoesNotMatch" | "InvalidSecurity.RequestHasExpired" => {
            "; is this machine's clock right?"
        }
        code if code.starts_with("ExpiredToken") => "; log in again (`aws sso login`)",
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted" => {
            "; the account's first spot instance needs iam:CreateServiceLinkedRole, once"
        }
        "OperationNotPermitted" => "; take its termination protection off first",
        "OptInRequired" => "; the region has to be enabled for the account",
        code if code.starts_with("InvalidAMIID.") => "; `image` says it",
        code if code.starts_with("InvalidSubnet") => {
            "; `subnets` of the pool's `ec2` or of the provider says it"
        }
        code if code.starts_with("InvalidGroup") || code.starts_with("InvalidSecurityGroup") => {
            "; `security_groups` of the pool's `ec2` or of the provider says it"
        }
        code if code.starts_with("InvalidKeyPair.") => "; `key_name` says it",
        _ => "",
    }
}

/// Leaves out what only AWS can read: `aws sts decode-authorization-message` wants all of it, which a log has not.
fn shortened(message: &str) -> String {
    let shown = message.split("Encoded authorization failure message").next().unwrap_or(message);
    shown.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_of_a_spec_says_which_key_it_stands_under() {
        for (code, key) in [
            ("InvalidAMIID.NotFound", "`image`"),
            ("InvalidSubnetID.NotFound", "`subnets`"),
            ("InvalidGroup.NotFound", "`security_groups`"),
            ("InvalidGroupId.Malformed", "`security_groups`"),
            ("InvalidKeyPair.NotFound", "`key_name`"),
        ] {
            let (code, message) = (code.to_owned(), "no".to_owned());
            let refusal = Refusal::Code { code, message, retry_after: None };
            let told = refusal.of_create("creating", Others::Follow).to_string();
            assert!(told.starts_with("invalid spec: creating: Invalid"), "{told}");
            assert!(told.contains(&format!("; {key}")), "{told}");
        }
    }

    fn named(code: &str, message: &str) -> (&'static str, &'static str) {
        let (code, message) = (code.to_owned(), message.to_owned());
        let refusal = Refusal::Code { code, message, retry_after: None };
        (refusal.of_create("creating", Others::Follow).code(), refusal.of_look("looking").code())
    }

    #[test]
    fn every_kind_of_code_has_its_name() {
        for (code, change, look) in [
            ("RequestLimitExceeded", "rate_limited", "rate_limited"),
            ("ThrottlingException", "rate_limited", "rate_limited"),
            ("InsufficientInstanceCapacity", "out_of_capacity", "out_of_capacity"),
            ("InsufficientFreeAddressesInSubnet", "out_of_capacity", "out_of_capacity"),
            ("VcpuLimitExceeded", "quota", "quota"),
            ("AddressLimitExceeded", "quota", "quota"),
            ("TagLimitExceeded", "invalid_spec", "invalid_spec"),
            ("UnauthorizedOperation", "unauthenticated", "unauthenticated"),
            ("ExpiredTokenException", "unauthenticated", "unauthenticated"),
            ("InvalidSecurity.RequestHasExpired", "unauthenticated", "unauthenticated"),
            (
                "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
                "unauthenticated",
                "unauthenticated",
            ),
            ("InternalError", "unknown_outcome", "transient"),
            ("Unavailable", "unknown_outcome", "transient"),
            ("IncorrectInstanceState", "transient", "transient"),
            ("InvalidInstanceID.NotFound", "not_found", "not_found"),
            ("InvalidAMIID.NotFound", "invalid_spec", "invalid_spec"),
            ("InsufficientVolumeCapacity", "out_of_capacity", "out_of_capacity"),
            ("InvalidSecurityGroupID.NotFound", "invalid_spec", "invalid_spec"),
            ("InvalidParameterCombination", "invalid_spec", "invalid_spec"),
            ("SomethingNew", "invalid_spec", "invalid_spec"),
        ] {
            assert_eq!(named(code, ""), (change, look), "{code}");
        }
        let image = "Not authorized for images: [ami-0123456789abcdef0]";
        assert_eq!(named("AuthFailure", image).0, "invalid_spec");
        let typo = "Invalid value 'm7i.lage' for InstanceType.";
        assert_eq!(named("InvalidParameterValue", typo).0, "invalid_spec");
        let zone = "Your requested instance type (m7i.large) is not supported in your requested \
                    Availability Zone (eu-central-1c).";
        assert_eq!(named("Unsupported", zone).0, "out_of_capacity");
        let region = "The requested configuration is currently not supported. Please check the documentation";
        assert_eq!(named("Unsupported", region).0, "out_of_capacity");
        let last = Refusal::Code {
            code: "Unsupported".to_owned(),
            message: region.to_owned(),
            retry_after: None,
        };
        assert_eq!(last.of_change("creating").code(), "invalid_spec");
        // Others only had no room.
        assert_eq!(last.of_create("creating", Others::Tried).code(), "out_of_capacity");
    }

    #[test]
    fn a_message_is_one_line_without_what_only_aws_can_read() {
        let refusal = Refusal::Code {
            code: "UnauthorizedOperation".to_owned(),
            message: "You are not authorized.\n Encoded authorization failure message: x9f2".into(),
            retry_after: None,
        };
        assert_eq!(refusal.text(), "UnauthorizedOperation: You are not authorized.");
        let told = refusal.of_change("creating ci-0-1").to_string();
        assert!(told.ends_with("their policy does not allow it"), "{told}");
    }
}
