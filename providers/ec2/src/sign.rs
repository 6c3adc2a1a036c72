//! Signature Version 4 (AWS, "Signature Version 4 signing process"), by the crate that AWS's own clients sign with.
//!
//! Input: a request's method, address, headers and body, and when it is made. Output: the headers that sign it. Pure.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;

/// A request that is to be signed.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'r> {
    /// `GET` or `POST`.
    pub method: &'r str,
    /// The whole address.
    pub url: &'r str,
    /// Headers that are signed; the host is, anyway.
    pub headers: &'r [(&'r str, &'r str)],
    /// The body.
    pub body: &'r [u8],
    /// The region and the service that it is for.
    pub scope: (&'r str, &'r str),
    /// When it is made.
    pub at: SystemTime,
}

/// Returns the headers that sign a request.
///
/// # Errors
/// When something of it cannot be signed, in words.
pub fn signature(
    request: Signed<'_>,
    credentials: &Credentials,
) -> Result<Vec<(String, String)>, String> {
    let Signed { method, url, headers, body, scope: (region, service), at } = request;
    let identity = credentials.clone().into();
    let parameters = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(at)
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| error.to_string())?
        .into();
    let signable =
        SignableRequest::new(method, url, headers.iter().copied(), SignableBody::Bytes(body))
            .map_err(|error| error.to_string())?;
    let output = sign(signable, &parameters).map_err(|error| error.to_string())?;
    let (instructions, _) = output.into_parts();
    let headers = instructions.headers();
    Ok(headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}
