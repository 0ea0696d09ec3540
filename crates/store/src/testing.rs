//! Ways in for fuzzing.

use crate::sftp::wire::Link;

/// A session with an SFTP server that says these bytes, whatever it is asked. Gives the bytes that were taken from it as file content.
pub fn sftp_session(said: &[u8]) -> usize {
    let Ok(mut link) = Link::new(said, std::io::sink()) else { return 0 };
    let mut taken = 0;
    // A failure ends the session, as it does in the store.
    let _ = (|| -> crate::Result<()> {
        if let Some(attributes) = link.stat("a")? {
            let handle = link.open("a")?;
            if let Ok(handle) = handle {
                let len = usize::try_from(attributes.len.min(1 << 20)).unwrap_or(0);
                taken += link.read(&handle, 0, len)?.ok().flatten().map_or(0, |bytes| bytes.len());
                link.close(&handle)?;
            }
        }
        link.list("b")?;
        link.write_file("c", &[7; 100_000])?;
        link.rename("c", "d")?;
        link.replace("c", "d", "f")?;
        link.mkdir("e")?;
        link.remove("d")?;
        Ok(())
    })();
    taken
}
