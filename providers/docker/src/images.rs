//! Pulling images: once at a time for each image, told as it goes, with the credentials of `docker login`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptions;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use futures_util::StreamExt as _;
use pool_provider::{Progress, ProviderError};
use tokio::time::Instant;

use crate::engine::{Engine, Refusal};

/// How often progress is told.
const TELL: Duration = Duration::from_secs(1);

/// Where credentials for images are kept that name no registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Pulls that are under way, by image.
#[derive(Debug, Default)]
pub(crate) struct Pulls(std::sync::Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Pulls {
    /// Pulls an image. Whoever wants the same image meanwhile waits; `unless_there` spares them the pull.
    pub(crate) async fn pull(
        &self,
        engine: &Engine,
        image: &str,
        unless_there: bool,
        progress: &Progress,
    ) -> Result<(), ProviderError> {
        let queue = {
            let mut pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(pulls.entry(image.to_owned()).or_default())
        };
        let _first = queue.lock().await;
        if unless_there && engine.has_image(image).await {
            return Ok(());
        }
        pull(engine, image, progress).await
    }
}

async fn pull(engine: &Engine, image: &str, progress: &Progress) -> Result<(), ProviderError> {
    progress.tell(&format!("pulling {image}"));
    let credentials = credentials(registry(image).to_owned()).await?;
    let options =
        CreateImageOptions { from_image: Some(with_tag(image)), ..CreateImageOptions::default() };
    let mut told = Instant::now();
    let mut layers: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    let mut pulling = engine.docker.create_image(Some(options), None, credentials);
    while let Some(said) = pulling.next().await {
        // An engine that did not finish left at most layers behind.
        let said = said.map_err(|error| refused(image, &Refusal::from(error)))?;
        if let Some(why) = said.error_detail.and_then(|detail| detail.message) {
            return Err(refused(image, &Refusal::Status(500, why)));
        }
        if let CreateImageInfo { id: Some(layer), progress_detail: Some(detail), .. } = said
            && let (Some(current), Some(total)) = (detail.current, detail.total)
        {
            layers.insert(layer, (current, total));
        }
        if told.elapsed() >= TELL && !layers.is_empty() {
            told = Instant::now();
            let sum =
                |part: fn(&(i64, i64)) -> i64| layers.values().map(part).sum::<i64>() / 1_000_000;
            progress.tell(&format!("pulling {image}: {} of {} MB", sum(|l| l.0), sum(|l| l.1)));
        }
    }
    progress.tell(&format!("pulled {image}"));
    Ok(())
}

/// Nothing was created yet: a pull that failed has no effect that matters.
fn refused(image: &str, refusal: &Refusal) -> ProviderError {
    let why = format!("pulling {image}: {}", refusal.text());
    let text = refusal.text().to_lowercase();
    if ["unauthorized", "denied", "authentication", "no basic auth credentials"]
        .iter()
        .any(|word| text.contains(word))
    {
        ProviderError::Unauthenticated(format!(
            "{why}; `docker login` leaves credentials to be found"
        ))
    } else if ["not found", "manifest unknown", "invalid reference", "invalid tag"]
        .iter()
        .any(|word| text.contains(word))
    {
        ProviderError::InvalidSpec(why)
    } else if text.contains("toomanyrequests") {
        ProviderError::RateLimited { message: why, retry_after: None }
    } else {
        ProviderError::Transient(why)
    }
}

/// Finds credentials where `docker login` leaves them: `config.json` in `DOCKER_CONFIG` or `~/.docker`, and the
/// helpers that it names.
async fn credentials(registry: String) -> Result<Option<DockerCredentials>, ProviderError> {
    let asked = registry.clone();
    let found =
        tokio::task::spawn_blocking(move || docker_credential::get_credential(&asked)).await;
    let serveraddress = Some(registry.clone());
    match found {
        Ok(Ok(DockerCredential::UsernamePassword(username, password))) => {
            Ok(Some(DockerCredentials {
                username: Some(username),
                password: Some(password),
                serveraddress,
                ..DockerCredentials::default()
            }))
        }
        Ok(Ok(DockerCredential::IdentityToken(token))) => Ok(Some(DockerCredentials {
            identitytoken: Some(token),
            serveraddress,
            ..DockerCredentials::default()
        })),
        Ok(Err(error)) if is_broken(&error) => Err(ProviderError::Unauthenticated(format!(
            "finding the credentials for {registry}: {error}"
        ))),
        // There are none: most images need none.
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

/// A helper that fails is not the same as one that has nothing. A config that is not there cannot be told from
/// one that cannot be read: the registry says whether credentials are needed.
fn is_broken(error: &CredentialRetrievalError) -> bool {
    match error {
        CredentialRetrievalError::HelperFailure { stdout, .. } => {
            !stdout.contains("credentials not found")
        }
        CredentialRetrievalError::HelperCommunicationError
        | CredentialRetrievalError::MalformedHelperResponse
        | CredentialRetrievalError::CredentialDecodingError
        | CredentialRetrievalError::CredentialMismatchError => true,
        CredentialRetrievalError::NoCredentialConfigured
        | CredentialRetrievalError::ConfigNotFound
        | CredentialRetrievalError::ConfigReadError => false,
    }
}

/// Returns the registry that an image's name begins with.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        Some(_) | None => DOCKER_HUB,
    }
}

/// Without a tag the engine would pull all of them.
fn with_tag(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_tell_their_registry_and_tag() {
        assert_eq!(registry("busybox"), DOCKER_HUB);
        assert_eq!(registry("library/busybox:1"), DOCKER_HUB);
        assert_eq!(registry("registry.example.com/ci/worker:1"), "registry.example.com");
        assert_eq!(registry("localhost:5000/worker"), "localhost:5000");
        assert_eq!(with_tag("localhost:5000/worker"), "localhost:5000/worker:latest");
        assert_eq!(with_tag("busybox:1"), "busybox:1");
        assert_eq!(with_tag("busybox@sha256:ab"), "busybox@sha256:ab");
    }
}
