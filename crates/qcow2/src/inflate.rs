//! Decompression of one cluster: bytes in, exactly one cluster out.
//!
//! What follows the compressed data in its last sector is another cluster's or nothing, so decompressors
//! stop when the cluster is full, and the length of the input is only an upper bound.

use std::io::{self, ErrorKind, Read};

use crate::header::Compression;

/// Decompresses `input` into the whole of `cluster`.
///
/// # Errors
/// `InvalidData` or `UnexpectedEof` where the input is damaged or gives less than a cluster.
pub(crate) fn inflate(compression: Compression, input: &[u8], cluster: &mut [u8]) -> io::Result<()> {
    match compression {
        Compression::Deflate => deflate(input, cluster),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            decoder.read_exact(cluster)
        }
    }
}

/// Largest window that a frame may ask memory for: 8 MiB, that of zstd's highest ordinary level. QEMU
/// itself writes frames with 2 MiB.
const WINDOW_LOG_MAX: u32 = 23;

fn deflate(input: &[u8], cluster: &mut [u8]) -> io::Result<()> {
    let mut state = flate2::Decompress::new(false);
    state
        .decompress(input, cluster, flate2::FlushDecompress::Finish)
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    if state.total_out() == cluster.len() as u64 {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::UnexpectedEof, "compressed data ends before the cluster is full"))
}
