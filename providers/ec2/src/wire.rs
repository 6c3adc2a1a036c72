//! How AWS's chain of credentials calls STS, SSO and metadata services: by the same HTTP client as everything else here,
//! instead of one of its own, which takes longer to build than all that is left of the chain.

use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use tokio::time::timeout;

/// How long a call may take of which nobody says so.
const PATIENCE: Duration = Duration::from_secs(30);

/// Calls by reqwest.
#[derive(Debug, Clone)]
pub(crate) struct Wire(pub(crate) reqwest::Client);

#[derive(Debug)]
struct Connector {
    client: reqwest::Client,
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
        SharedHttpConnector::new(Connector { client: self.0.clone(), limit })
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (client, limit) = (self.client.clone(), self.limit);
        HttpConnectorFuture::new(async move {
            match timeout(limit, send(&client, request)).await {
                Ok(answer) => answer,
                Err(late) => Err(ConnectorError::timeout(late.into())),
            }
        })
    }
}

async fn send(
    client: &reqwest::Client,
    request: HttpRequest,
) -> Result<HttpResponse, ConnectorError> {
    let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
    let (parts, body) = request.into_parts();
    let body = body.bytes().map(<[u8]>::to_vec).unwrap_or_default();
    let answer = client
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
