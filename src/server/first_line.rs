//! The first line of an HTTP/1 connection. What speaks another protocol, or a
//! broken HTTP/2, gets no HTTP/1 answer to be puzzled by: its connection is
//! closed (RFC 9113, section 3.4).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The end of every request line of HTTP/1; the last digit is the minor version.
const VERSION: &[u8] = b" HTTP/1.";
const VERSION_BYTES: usize = VERSION.len() + 1;

/// A stream that fails when its first line is no request line.
#[derive(Debug)]
pub(super) struct FirstLine<T> {
    inner: T,
    /// The last bytes of the first line; none once it has ended.
    tail: Option<Vec<u8>>,
}

impl<T> FirstLine<T> {
    /// Watches a stream from its first byte.
    pub(super) fn new(inner: T) -> Self {
        Self { inner, tail: Some(Vec::with_capacity(VERSION_BYTES + 1)) }
    }

    /// Looks at the next bytes; false when the first line is none of HTTP/1.
    fn accepts(&mut self, bytes: &[u8]) -> bool {
        for &byte in bytes {
            let Some(tail) = &mut self.tail else { return true };
            match byte {
                // Empty lines may come before it (RFC 9112, section 2.2).
                b'\r' | b'\n' if tail.is_empty() => {}
                b'\r' => {}
                b'\n' => {
                    let good = tail.len() == VERSION_BYTES && tail.starts_with(VERSION);
                    self.tail = None;
                    return good;
                }
                _ => {
                    if tail.len() == VERSION_BYTES {
                        tail.remove(0);
                    }
                    tail.push(byte);
                }
            }
        }
        true
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for FirstLine<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if self.tail.is_some() && matches!(read, Poll::Ready(Ok(()))) {
            let new = buffer.filled().get(before..).unwrap_or_default();
            if !self.accepts(new) {
                let error = io::Error::new(io::ErrorKind::InvalidData, "no HTTP request line");
                return Poll::Ready(Err(error));
            }
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for FirstLine<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// Gives pieces one by one, as a network does.
    struct Pieces<'a>(&'a [&'a [u8]]);

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if let Some((first, rest)) = self.0.split_first() {
                buffer.put_slice(first);
                self.0 = rest;
            }
            Poll::Ready(Ok(()))
        }
    }

    async fn read(pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
        let mut stream = FirstLine::new(Pieces(pieces));
        let mut all = vec![0; 1024];
        let mut end = 0;
        loop {
            match stream.read(&mut all[end..]).await? {
                0 => return Ok(all[..end].to_vec()),
                more => end += more,
            }
        }
    }

    #[tokio::test]
    async fn a_request_line_passes_in_whatever_pieces() {
        let whole: &[u8] = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nHTTP/3 is no line to look at\n";
        assert_eq!(read(&[whole]).await.unwrap(), whole);
        let single: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(read(&single).await.unwrap(), whole);
        for good in [&b"\r\n\nGET / HTTP/1.0\n"[..], b"GET / HT", b""] {
            assert_eq!(read(&[good]).await.unwrap(), good);
        }
    }

    #[tokio::test]
    async fn any_other_first_line_ends_the_stream() {
        for bad in [
            &b"INVALID CONNECTION PREFACE\r\n\r\n"[..],
            b"PRX * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /\r\n",
            b"HTTP/1.1\n",
        ] {
            let error = read(&[bad]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let single: Vec<&[u8]> = bad.chunks(1).collect();
            assert!(read(&single).await.is_err());
        }
    }
}
