//! Connections: a socket for the host's own users, TLS for everybody else; bounded in number and in patience.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::{Request, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use crate::access::{Caller, Role};
use crate::api::Peer;
use crate::error::{Error, IoContext as _};
use crate::share::Shares;

/// How many connections there are at once, of each listener.
const CONNECTIONS: usize = 200;
/// How many of them one address of the network has: whoever says nothing on all of theirs locks nobody else out.
const CONNECTIONS_EACH: usize = 50;
/// Of an IPv6 address, what is whose it is: the rest each host chooses, as often as it likes.
const NETWORK: u128 = u128::MAX << 64;
/// How long a client may take for a handshake, or for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what it is sent: then its connection is for others.
const TAKES_NOTHING: Duration = Duration::from_secs(30);
/// How long a listener rests when the system has no descriptor left.
const REST: Duration = Duration::from_millis(200);

/// The socket of a home's daemon.
#[must_use]
pub fn socket(serve: &Path) -> std::path::PathBuf {
    serve.join("api.sock")
}

/// Whether what was handed over listens where the home's own socket is: somebody can come to it by that name.
#[must_use]
pub fn is_socket_of(serve: &Path, listener: &std::os::unix::net::UnixListener) -> bool {
    let own = socket(serve);
    let named = listener.local_addr().ok().and_then(|at| at.as_pathname().map(Path::to_owned));
    let real = |path: &Path| path.canonicalize().ok();
    named.is_some_and(|path| real(&path).is_some_and(|path| Some(path) == real(&own))) && somebody_listens(&own)
}

/// Whether a name leads to a socket that listens: it may have been taken away, or by another who is gone. Whoever waits there with
/// many others is not waited for.
fn somebody_listens(path: &Path) -> bool {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connected = SocketAddrUnix::new(path).and_then(|address| {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)
    });
    matches!(connected, Ok(()) | Err(rustix::io::Errno::AGAIN))
}

/// Listens for the host's own users: whoever may open the socket, which is its owner and root.
///
/// # Errors
/// [`Error::Io`] when it cannot.
pub fn listen(serve: &Path) -> Result<UnixListener, Error> {
    let path = socket(serve);
    // Left by one that was killed: the home's lock says that nobody listens.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).or_io("listen on", &path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).or_io("protect", &path)?;
    Ok(listener)
}

/// A socket for them that was handed over.
///
/// # Errors
/// [`Error::Io`] when the runtime cannot have it.
pub fn handed_local(listener: std::os::unix::net::UnixListener) -> Result<UnixListener, Error> {
    let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    listener.or_io("listen on", Path::new("a socket that was handed over"))
}

/// Serves them.
pub async fn on_socket(listener: UnixListener, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(REST).await;
            continue;
        };
        let Ok(peer) = stream.peer_cred() else { continue };
        let caller = Caller { who: format!("uid {}", peer.uid()), role: Role::Admin };
        let router = router.clone();
        tokio::spawn(async move {
            converse(stream, router, Peer::Local(caller)).await;
            drop(permit);
        });
    }
}

/// Binds an address.
///
/// # Errors
/// [`Error::Io`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.or_io("listen on", Path::new(&address.to_string()))
}

/// An address that was handed over.
///
/// # Errors
/// [`Error::Io`] when the runtime cannot have it.
pub fn handed_network(listener: std::net::TcpListener) -> Result<TcpListener, Error> {
    let listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
    listener.or_io("listen on", Path::new("an address that was handed over"))
}

/// Serves those who come over the network.
pub async fn on_network(listener: TcpListener, tls: TlsAcceptor, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let shares = Arc::new(Shares::of(CONNECTIONS_EACH));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(REST).await;
            continue;
        };
        let Some(share) = shares.one_more(&neighbourhood(from.ip())) else {
            tracing::debug!("{from} has {CONNECTIONS_EACH} connections already: one more is closed");
            continue;
        };
        // Answers are small: none waits for more to be sent with it.
        let _ = stream.set_nodelay(true);
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                converse(stream, router, Peer::Distant(from)).await;
            }
            drop((permit, share));
        });
    }
}

/// Whose connections are counted together.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, router: Router, peer: Peer) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(64 << 10);
    // A client that goes away in the middle is no trouble of ours.
    let _: Result<(), hyper::Error> =
        http.serve_connection(TokioIo::new(Patient::of(stream, TAKES_NOTHING)), service).await;
}

/// A stream whose other side must take what it is sent, sooner or later.
#[derive(Debug)]
struct Patient<S> {
    stream: S,
    patience: Duration,
    /// Since something waits to be taken.
    waits: Option<Pin<Box<Sleep>>>,
}

impl<S: Unpin> Patient<S> {
    fn of(stream: S, patience: Duration) -> Self {
        Self { stream, patience, waits: None }
    }

    /// What came of sending; an error when nothing came of it for too long.
    fn sent<T>(&mut self, sent: Poll<std::io::Result<T>>, context: &mut Context<'_>) -> Poll<std::io::Result<T>> {
        if sent.is_ready() {
            self.waits = None;
            return sent;
        }
        let until = Instant::now() + self.patience;
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(waits.as_mut().poll(context));
        Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.sent(sent, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_flush(cx);
        this.sent(sent, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.sent(sent, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_write_vectored(cx, bytes);
        this.sent(sent, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpSocket, TcpStream, UnixStream};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    fn in_runtime(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test);
    }

    /// Whether the other side has hung up.
    async fn is_over(stream: &mut TcpStream) -> bool {
        tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await.is_ok()
    }

    async fn from(client: &str, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(client.parse().unwrap()).unwrap();
        socket.connect(to).await.unwrap()
    }

    #[test]
    fn one_address_has_a_part_of_the_connections_and_locks_no_other_out() {
        in_runtime(async {
            let serve = tempfile::tempdir().unwrap();
            let tls = TlsAcceptor::from(crate::tls::config(serve.path(), "localhost").unwrap());
            let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(on_network(listener, tls, Router::new()));
            let mut held = Vec::new();
            for _ in 0..CONNECTIONS_EACH {
                held.push(from("127.0.0.1:0", address).await);
            }
            assert!(is_over(&mut from("127.0.0.1:0", address).await).await, "it has one more than its part");
            assert!(!is_over(&mut from("127.0.0.2:0", address).await).await, "another one is locked out");
            assert!(
                !is_over(&mut held[0]).await && !is_over(held.last_mut().unwrap()).await,
                "it lost some of its part"
            );
            held.pop();
            let another = async { while is_over(&mut from("127.0.0.1:0", address).await).await {} };
            tokio::time::timeout(PATIENCE * 20, another).await.expect("it gets none for one that ended");
        });
    }

    #[test]
    fn addresses_of_one_network_are_counted_together_where_each_host_has_many() {
        let of = |address: &str| neighbourhood(address.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::5"), of("2001:db8:0:1:ffff::6"));
        assert_ne!(of("2001:db8:0:1::5"), of("2001:db8:0:2::5"));
        assert_eq!(of("::ffff:192.0.2.7"), of("192.0.2.7"));
        assert_ne!(of("192.0.2.7"), of("192.0.2.8"));
    }

    #[test]
    fn who_takes_nothing_is_not_waited_for() {
        in_runtime(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut patient = Patient::of(ours, PATIENCE);
            let begun = Instant::now();
            let sent = tokio::time::timeout(PATIENCE * 20, patient.write_all(&vec![0; 16 << 20])).await;
            assert_eq!(sent.expect("it waits for ever").unwrap_err().kind(), std::io::ErrorKind::TimedOut);
            assert!(begun.elapsed() >= PATIENCE);
            drop(theirs);
        });
    }

    #[test]
    fn who_takes_a_little_again_and_again_gets_all_of_it() {
        in_runtime(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut patient = Patient::of(ours, PATIENCE);
            let taking = tokio::spawn(async move {
                let (mut all, mut some) = (0, vec![0; 256 << 10]);
                loop {
                    tokio::time::sleep(PATIENCE / 3).await;
                    match theirs.read(&mut some).await.unwrap() {
                        0 => return all,
                        taken => all += taken,
                    }
                }
            });
            patient.write_all(&vec![0; 2 << 20]).await.unwrap();
            patient.shutdown().await.unwrap();
            assert_eq!(taking.await.unwrap(), 2 << 20);
        });
    }
}
