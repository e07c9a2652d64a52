//! Bodies of requests, within limits of size and time.

use std::{
    pin::{Pin, pin},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;

use super::fault::Fault;

/// What is read of a body that nobody wants, so that the client sees the answer.
const DRAIN_BYTES_MAX: usize = 1024 * 1024;
/// How long that may take.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// Reads what is left of a refused request's body, up to 1 MiB and two
/// seconds. A client that is still writing would otherwise get a reset instead
/// of the answer, on HTTP/1 and, with curl at least, on HTTP/2 too.
pub async fn drain<B: Body>(body: B) {
    let mut body = pin!(body);
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, async {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, bytes::Buf::remaining);
            let Some(rest) = left.checked_sub(length) else { break };
            left = rest;
        }
    })
    .await;
}

/// Reads a whole body.
pub(in crate::gateway) async fn read<B>(
    mut body: Pin<&mut B>,
    limit: usize,
    time: Duration,
) -> Result<Bytes, Fault>
where
    B: Body<Data = Bytes>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let declared = body.size_hint().lower();
    if usize::try_from(declared).map_or(true, |declared| declared > limit) {
        return Err(Fault::too_large(limit));
    }
    let reading = async {
        // One frame, the ordinary case, is taken as it is.
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Fault::malformed("The body broke off"))?;
            let Ok(data) = frame.into_data() else { continue };
            if first.len() + rest.len() + data.len() > limit {
                return Err(Fault::too_large(limit));
            }
            if first.is_empty() {
                first = data;
            } else {
                rest.extend_from_slice(&data);
            }
        }
        if rest.is_empty() {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(first.len() + rest.len());
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&rest);
        Ok(whole.freeze())
    };
    tokio::time::timeout(time, reading).await.unwrap_or_else(|_| Err(Fault::body_timeout()))
}
