//! Where connections come from: a TCP address or a Unix domain socket. [`super::serve()`] knows either as a [`Listener`].
//! It opens and closes sockets and reads nothing from them. Called by `cli`, and by tests with TCP listeners of their own.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};

/// Gives connections.
pub trait Listener: Send + 'static {
    /// A connection.
    type Socket: Socket;

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Socket>> + Send;
}

/// A connection.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Resolves when there is something to read, or the other end is gone.
    fn wait_readable(&self) -> impl Future<Output = io::Result<()>> + Send;
}

impl Listener for TcpListener {
    type Socket = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (socket, _) = self.accept().await?;
        // Each token is a small write that should leave at once.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        Ok(socket)
    }
}

impl Socket for TcpStream {
    async fn wait_readable(&self) -> io::Result<()> {
        self.readable().await
    }
}

/// A listening Unix domain socket; its file is removed with it.
#[cfg(unix)]
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: std::path::PathBuf,
}

#[cfg(unix)]
impl UnixSocket {
    /// Listens at `path`. A socket's file that a server left behind is replaced; one where somebody listens, or a file of
    /// another kind, is an error.
    pub fn bind(path: &std::path::Path) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server listens there"));
            }
            std::fs::remove_file(path)?;
        }
        Ok(Self { listener: UnixListener::bind(path)?, path: path.to_owned() })
    }
}

#[cfg(unix)]
impl Drop for UnixSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(unix)]
impl Listener for UnixSocket {
    type Socket = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

#[cfg(unix)]
impl Socket for UnixStream {
    async fn wait_readable(&self) -> io::Result<()> {
        self.readable().await
    }
}
