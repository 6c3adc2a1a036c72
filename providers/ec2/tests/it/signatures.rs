//! Signatures against AWS's published test suite for Signature Version 4. botocore checks those of every call in the
//! other tests.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use pool_ec2::{Signed, signature};

/// 2015-08-30T12:36:00Z, the time of the published suite.
const AT: Duration = Duration::from_secs(1_440_938_160);

fn signed(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let key = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    let credentials = Credentials::new("AKIDEXAMPLE", key, None, None, "tests");
    let request = Signed {
        method,
        url: &format!("https://example.amazonaws.com{path}"),
        headers,
        body: body.as_bytes(),
        scope: ("us-east-1", "service"),
        at: SystemTime::UNIX_EPOCH + AT,
    };
    let headers = signature(request, &credentials).unwrap();
    let (_, value) = headers.into_iter().find(|(name, _)| name == "authorization").unwrap();
    value
}

#[test]
fn aws_published_vectors_are_signed_as_published() {
    let scope = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request";
    for (method, path, headers, body, names, expected) in [
        // get-vanilla
        (
            "GET",
            "/",
            &[][..],
            "",
            "host;x-amz-date",
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        ),
        // get-vanilla-query-order-key-case
        (
            "GET",
            "/?Param2=value2&Param1=value1",
            &[],
            "",
            "host;x-amz-date",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        // post-vanilla
        (
            "POST",
            "/",
            &[],
            "",
            "host;x-amz-date",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        // post-x-www-form-urlencoded, which is how EC2 is called
        (
            "POST",
            "/",
            &[("content-type", "application/x-www-form-urlencoded")],
            "Param1=value1",
            "content-type;host;x-amz-date",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ] {
        let expected = format!("{scope}, SignedHeaders={names}, Signature={expected}");
        assert_eq!(signed(method, path, headers, body), expected, "{method} {path}");
    }
}
