//! The images of the home: how this program reaches registries, and what it shows of a transfer. Every command
//! that uses an image opens the store here.

pub(crate) mod settings;
pub(crate) mod transfer;

use crate::{environment, failure::Failure};
use clap::Args;
use sandboxvm_build::machines::Downloads;
use sandboxvm_manager::{DownloadReach, ImageStore, NetworkOperator, NetworkSpec};
use settings::Settings;
use std::{path::PathBuf, sync::Arc};

/// How a registry is reached.
#[derive(Debug, Default, Clone, Args)]
#[command(next_help_heading = "Registry")]
pub(crate) struct RegistryOptions {
    /// Speak to the registry without TLS: everyone on the way can read and replace the image
    #[arg(long)]
    plain_http: bool,
    /// Accept certificates of the authorities in this PEM file, in addition to those of the system
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// The store, and how registries are reached.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) store: ImageStore,
    pub(crate) settings: Settings,
}

impl Opened {
    /// Returns how files of a build are downloaded: what its network reaches, with the authorities of registries.
    pub(crate) fn downloads(
        &self,
        options: &RegistryOptions,
        network: &NetworkSpec,
        operator: &NetworkOperator,
    ) -> Result<Downloads, Failure> {
        let mut registries = self.settings.registries();
        registries.authorities.extend(options.ca.clone());
        registries.reach = Arc::new(DownloadReach::of(network, operator)?);
        Ok(Downloads { options: registries, may_be_plain: options.plain_http })
    }

    /// Returns what names an image of the home: its digest for the beginning of its ID, and otherwise the text.
    pub(crate) fn named(&self, text: &str) -> Result<String, Failure> {
        Ok(self.store.images().by_short_id(text)?.map_or_else(|| text.to_owned(), |digest| digest.to_string()))
    }
}

/// Opens the images of the home. The options are for the registry of
/// `reference`.
pub(crate) fn open(options: &RegistryOptions, reference: Option<&str>) -> Result<Opened, Failure> {
    let settings = Settings::read()?;
    let host = reference.map(|text| settings.reference(text)).transpose()?;
    open_for(settings, options, host.as_ref().map(|reference| reference.host()))
}

/// Like [`open`], for a registry by its name.
pub(crate) fn open_for(settings: Settings, options: &RegistryOptions, host: Option<&str>) -> Result<Opened, Failure> {
    let mut registries = settings.registries();
    registries.plain_http.extend(host.filter(|_| options.plain_http).map(str::to_owned));
    registries.authorities.extend(options.ca.clone());
    let store = environment::manager()?.images(&environment::bundle(None, None), registries)?;
    Ok(Opened { store, settings })
}
