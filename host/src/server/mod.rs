//! HTTP.
pub(crate) mod body;
pub(crate) mod config;
pub(crate) mod error;
pub(crate) mod protocol;
pub use config::ServerConfig;
pub use error::ApiError;
