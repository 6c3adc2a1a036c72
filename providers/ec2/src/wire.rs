//! How AWS's chain of credentials calls STS, SSO and metadata services: by the same HTTP client as everything else here,
//! instead of one of its own, which takes longer to build than all that is left of the chain.
//!
//! A metadata service is asked without a proxy: it is on this host, or says who this host is, and its answer is a secret.

use std::net::IpAddr;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use pool_provider::http;
use tokio::time::timeout;

/// How long a call may take of which nobody says so.
const PATIENCE: Duration = Duration::from_secs(30);

/// Calls by reqwest.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    client: reqwest::Client,
    /// For what is near.
    direct: reqwest::Client,
}

impl Wire {
    /// Builds it.
    ///
    /// # Errors
    /// When the system's certificates cannot be read.
    pub(crate) fn new() -> Result<Self, reqwest::Error> {
        let http = || http::secure().redirect(reqwest::redirect::Policy::none());
        Ok(Self { client: http().build()?, direct: http().no_proxy().build()? })
    }

    fn for_host(&self, host: &str) -> reqwest::Client {
        if is_near(host) { self.direct.clone() } else { self.client.clone() }
    }
}

/// Returns whether a host is this one, or a metadata service: those have addresses that lead nowhere else.
fn is_near(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => {
            address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_unique_local() && address.segments()[..2] == [0xfd00, 0x0ec2]
        }
        Err(_) => host == "localhost",
    }
}

#[derive(Debug)]
struct Connector {
    wire: Wire,
    limit: Duration,
}

impl HttpClient for Wire {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        // Where there is no metadata service, nobody should wait for it.
        let asked = [settings.connect_timeout(), settings.read_timeout()];
        let limit = asked.iter().flatten().sum();
        let limit = if asked[1].is_some() { limit } else { PATIENCE };
        SharedHttpConnector::new(Connector { wire: self.clone(), limit })
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (wire, limit) = (self.wire.clone(), self.limit);
        HttpConnectorFuture::new(async move {
            match timeout(limit, send(&wire, request)).await {
                Ok(answer) => answer,
                Err(late) => Err(ConnectorError::timeout(late.into())),
            }
        })
    }
}

async fn send(wire: &Wire, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
    let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
    let (parts, body) = request.into_parts();
    let body = body.bytes().map(<[u8]>::to_vec).unwrap_or_default();
    let answer = wire
        .for_host(parts.uri.host().unwrap_or_default())
        .request(parts.method, parts.uri.to_string())
        .headers(parts.headers)
        .body(body)
        .send()
        .await
        .map_err(|error| ConnectorError::io(error.into()))?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = answer.bytes().await.map_err(|error| ConnectorError::io(error.into()))?;
    let mut response = HttpResponse::new(status.into(), SdkBody::from(body.to_vec()));
    for (name, value) in &headers {
        if let Ok(value) = value.to_str() {
            response.headers_mut().append(name.as_str().to_owned(), value.to_owned());
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_services_are_near() {
        let near = ["169.254.169.254", "169.254.170.2", "[fd00:ec2::254]", "127.0.0.1", "[::1]"];
        assert!(near.iter().all(|host| is_near(host)) && is_near("localhost"));
        for far in ["sts.eu-west-1.amazonaws.com", "10.0.0.1", "[fd00:ec3::254]", "8.8.8.8", ""] {
            assert!(!is_near(far), "{far}");
        }
    }
}
