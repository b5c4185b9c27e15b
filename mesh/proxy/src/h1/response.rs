//! A response's head: read where it lies, written anew for the client.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use starling_core::policy::Fields;

use super::Framing;
use super::fields::{self, Connection, Field, Written, field};
use crate::grpc;
use crate::reason::Reason;
use crate::settings::ProxySettings;

/// What a head says.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) framing: Framing,
    /// Whether the connection can be used again.
    pub(crate) keep_alive: bool,
    /// The other sidecar answered, not the application: why.
    pub(crate) reason: Option<(Reason, String)>,
    is_grpc: bool,
    /// How a call of gRPC went, where that is known, and how that counts.
    grpc: Option<(&'static str, StatusCode)>,
    /// How long it asks the caller to wait before it asks again. A negative wait of gRPC means never.
    pub(crate) asks_wait: Option<Duration>,
    /// How long the head was.
    pub(crate) length: usize,
}

/// How a body is delimited for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Byte for byte as it comes.
    AsItIs,
    /// In chunks, made here: the instance delimits it by closing.
    InChunks,
    /// Without the chunks it comes in: the client speaks HTTP/1.0.
    Unchunked,
}

/// Of whom and for whom a response is.
pub(crate) struct Asked {
    /// The request was a HEAD: no body follows, whatever the head says.
    pub(crate) head_only: bool,
    /// The request asked for another protocol.
    pub(crate) upgrades: bool,
    /// The client speaks HTTP/1.0.
    pub(crate) http_10: bool,
}

impl Response {
    /// Reads a head from the beginning of `data`; `None` until all of it is there. Interim responses are for the
    /// sidecar alone and are returned like others; nothing is written for them. Otherwise the fields for the client are
    /// written into `out`, up to where the caller adds its own.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn read(
        data: &[u8],
        settings: &ProxySettings,
        asked: &Asked,
        out: &mut Vec<u8>,
    ) -> Result<Option<Response>, String> {
        let most = settings.max_headers;
        fields::with_room(most, |room| {
            let mut parsed = httparse::Response::new(&mut []);
            match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, data, room) {
                Ok(httparse::Status::Complete(length)) => write(&parsed, length, asked, out).map(Some),
                Ok(httparse::Status::Partial) => Ok(None),
                Err(httparse::Error::TooManyHeaders) => Err(format!("the response has more than {most} header fields")),
                Err(error) => Err(format!("the response cannot be read: {error}")),
            }
        })
    }

    /// One whose body of this length is kept here.
    pub(crate) fn kept(status: StatusCode, length: u64) -> Self {
        let framing = Framing::Length(length);
        let (keep_alive, is_grpc) = (false, false);
        Response { status, framing, keep_alive, reason: None, is_grpc, grpc: None, asks_wait: None, length: 0 }
    }

    /// The status it counts as.
    pub(crate) fn verdict(&self) -> StatusCode {
        self.grpc.map_or(self.status, |(_, counts)| counts)
    }

    /// What it failed by, if it did.
    pub(crate) fn failure(&self) -> Option<&str> {
        let named = self.grpc.map_or(self.status.as_str(), |(name, _)| name);
        self.verdict().is_server_error().then_some(named)
    }

    /// Whether how the call went stands behind its messages.
    pub(crate) fn is_judged_later(&self) -> bool {
        self.is_grpc && self.status == StatusCode::OK && self.grpc.is_none() && self.framing == Framing::Chunked
    }

    /// What stood there. Without such a field it counts as its head says.
    pub(crate) fn judge(&mut self, trailers: &Written<'_>) {
        self.grpc = trailers.field("grpc-status").map(grpc::read_status);
    }

    /// How its body goes to the client.
    pub(crate) fn delivery(&self, asked: &Asked) -> Delivery {
        match (self.framing, asked.http_10) {
            (Framing::UntilClose, false) => Delivery::InChunks,
            (Framing::Chunked, true) => Delivery::Unchunked,
            _ => Delivery::AsItIs,
        }
    }

    /// Whether the client can tell the body's end only by the connection's.
    pub(crate) fn ends_with_connection(&self, asked: &Asked) -> bool {
        asked.http_10 && matches!(self.framing, Framing::UntilClose | Framing::Chunked)
    }
}

fn write(
    parsed: &httparse::Response<'_, '_>,
    length: usize,
    asked: &Asked,
    out: &mut Vec<u8>,
) -> Result<Response, String> {
    let code = parsed.code.unwrap_or(0);
    let status = StatusCode::from_u16(code).map_err(|_| format!("the response's status is {code}"))?;
    let mut connection = Connection::default();
    let (mut given, mut coding, mut date, mut upgrade) = (None, None, None, None);
    let (mut reason, mut grpc, mut pushback, mut retry_after) = (None, None, None, None);
    let mut is_grpc = false;
    for header in parsed.headers.iter() {
        match field(header.name) {
            Field::ContentLength => {
                let length = fields::number(header.value).ok_or("the response's Content-Length is not a number")?;
                if given.replace(length).is_some_and(|other| other != length) {
                    return Err("the response has several Content-Length fields that differ".into());
                }
            }
            Field::TransferEncoding if coding.replace(header.value).is_some() => {
                return Err("the response has several Transfer-Encoding fields".into());
            }
            Field::Connection => connection.read(header.value),
            Field::Upgrade => upgrade = Some(header.value),
            Field::Reason => reason = Some(Reason::read(header.value)),
            Field::Date => date = Some(header.value),
            Field::RetryAfter => retry_after = Some(header.value),
            Field::Pushback => {
                pushback = Some(fields::number(header.value).map_or(Duration::MAX, Duration::from_millis))
            }
            Field::ContentType => is_grpc = grpc::is_grpc(header.value),
            Field::GrpcStatus => grpc = Some(grpc::read_status(header.value)),
            _ => {}
        }
    }
    let switches = status == StatusCode::SWITCHING_PROTOCOLS;
    if switches && !asked.upgrades {
        // Nobody asked for it.
        return Err("the application switched protocols unasked".into());
    }
    let http_11 = parsed.version == Some(1);
    if coding.is_some() && !http_11 {
        // Whoever speaks it cannot know of codings: nobody can say for certain where the body ends (RFC 9112, section 6.1).
        return Err("the response has a Transfer-Encoding in HTTP/1.0".into());
    }
    let framing = framing(status, given, coding, asked)?;
    let keep_alive = if http_11 { !connection.close } else { connection.keep_alive };
    let response = Response {
        status,
        framing,
        keep_alive: keep_alive && framing != Framing::UntilClose,
        reason,
        is_grpc,
        grpc,
        asks_wait: pushback.or_else(|| wait_of(retry_after?, date)),
        length,
    };
    if status.is_informational() && !switches {
        return Ok(response);
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    // What an application says besides the code may hold anything printable; its absence is no error.
    out.extend_from_slice(parsed.reason.unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for header in parsed.headers.iter() {
        let field = field(header.name);
        let passes = field.is_of_ends() || matches!(field, Field::TraceState | Field::TraceParent);
        if passes && !connection.ends(header) {
            fields::write(out, header.name.as_bytes(), header.value);
        }
    }
    match response.delivery(asked) {
        // What follows is no body of HTTP (RFC 9110, section 7.8).
        _ if switches => {}
        Delivery::InChunks => fields::write(out, b"transfer-encoding", b"chunked"),
        Delivery::AsItIs if framing == Framing::Chunked => fields::write(out, b"transfer-encoding", b"chunked"),
        _ => {}
    }
    // Beside a coding, a length counts for nothing (RFC 9112, section 6.3). Without a body it still tells of one.
    if let Some(length) = given.filter(|_| coding.is_none() && status != StatusCode::NO_CONTENT) {
        fields::write_number(out, b"content-length", length);
    }
    if let Some(protocol) = upgrade.filter(|_| switches) {
        fields::write(out, b"connection", b"upgrade");
        fields::write(out, b"upgrade", protocol);
    }
    if date.is_none() {
        write_date(out);
    }
    Ok(response)
}

/// A `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3). A date is taken by the clock of whoever wrote it, which may be
/// wrong, if the answer has a `Date`; by ours otherwise. What is neither says nothing.
fn wait_of(retry_after: &[u8], date: Option<&[u8]>) -> Option<Duration> {
    let time = |value| httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok();
    if let Some(seconds) = fields::number(retry_after) {
        return Some(Duration::from_secs(seconds));
    }
    let until = time(retry_after)?;
    let now = date.and_then(time).unwrap_or_else(SystemTime::now);
    // What is over already is no wait.
    Some(until.duration_since(now).unwrap_or_default())
}

fn framing(status: StatusCode, length: Option<u64>, coding: Option<&[u8]>, asked: &Asked) -> Result<Framing, String> {
    if let Some(coding) = coding.filter(|coding| !coding.eq_ignore_ascii_case(b"chunked")) {
        let coding = String::from_utf8_lossy(coding);
        return Err(format!("transfer coding {coding:?} is not carried, only \"chunked\" is"));
    }
    let bare = status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    Ok(match (coding, length) {
        _ if status == StatusCode::SWITCHING_PROTOCOLS => Framing::UntilClose,
        _ if asked.head_only || bare => Framing::Empty,
        (Some(_), _) => Framing::Chunked,
        (None, Some(length)) => Framing::Length(length),
        (None, None) => Framing::UntilClose,
    })
}

thread_local! {
    /// The second, and how it is written.
    static DATE: RefCell<(u64, Vec<u8>)> = const { RefCell::new((u64::MAX, Vec::new())) };
}

/// A proxy that passes on a response without a date adds one (RFC 9110, section 6.6.1).
pub(crate) fn write_date(out: &mut Vec<u8>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|(second, text)| {
        if *second != now {
            (*second, *text) = (now, date(now).into_bytes());
        }
        fields::write(out, b"date", text);
    });
}

/// A Unix time as HTTP writes it. Civil date from days after Howard Hinnant's `civil_from_days`.
fn date(unix: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, second) = (unix / 86_400, unix % 86_400);
    let since_march = days + 719_468;
    let (era, of_era) = (since_march / 146_097, since_march % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = year_of_era + era * 400 + u64::from(month < 2);
    format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(asked: &Asked, head: &str) -> Result<(Response, String), String> {
        let mut out = Vec::new();
        let response = Response::read(head.as_bytes(), &ProxySettings::default(), asked, &mut out)?;
        Ok((response.expect("a whole head"), String::from_utf8(out).unwrap()))
    }

    const GET: Asked = Asked { head_only: false, upgrades: false, http_10: false };

    #[test]
    fn a_body_ends_as_the_standard_says() {
        let chunked = "transfer-encoding: chunked\r\n";
        for (head, framing) in [
            ("200 OK\r\ncontent-length: 3\r\n".to_owned(), Framing::Length(3)),
            (format!("200 OK\r\ncontent-length: 3\r\n{chunked}"), Framing::Chunked),
            ("200 OK\r\n".into(), Framing::UntilClose),
            ("204 No Content\r\ncontent-length: 3\r\n".into(), Framing::Empty),
            ("304 Not Modified\r\ncontent-length: 3\r\n".into(), Framing::Empty),
            ("100 Continue\r\n".into(), Framing::Empty),
        ] {
            assert_eq!(read(&GET, &format!("HTTP/1.1 {head}\r\n")).unwrap().0.framing, framing, "{head}");
        }
        let head_only = Asked { head_only: true, ..GET };
        let (response, out) = read(&head_only, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n").unwrap();
        assert!(response.framing == Framing::Empty && out.contains("content-length: 3\r\n"), "{out}");
    }

    #[test]
    fn a_connection_is_kept_as_its_version_and_fields_say() {
        for (head, kept) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n", true),
            ("HTTP/1.1 200 OK\r\n", false),
        ] {
            assert_eq!(read(&GET, &format!("{head}\r\n")).unwrap().0.keep_alive, kept, "{head}");
        }
    }

    #[test]
    fn what_cannot_be_understood_or_was_not_asked_for_is_refused() {
        for head in [
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
            "HTTP/1.1 99 Low\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\n\r\n",
        ] {
            assert!(read(&GET, head).is_err(), "{head}");
        }
    }

    #[test]
    fn how_long_to_wait_is_said_in_seconds_or_as_a_date_by_the_clock_of_whoever_says_it() {
        let wait = |fields: &str| read(&GET, &format!("HTTP/1.1 503 Busy\r\n{fields}\r\n")).unwrap().0.asks_wait;
        let date = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
        for (retry_after, seconds) in [
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 08:51:37 GMT", Some(120)),
            ("Sunday, 06-Nov-94 08:51:37 GMT", Some(120)),
            ("Sun Nov  6 08:51:37 1994", Some(120)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", Some(0)),
            ("Sun, 06 Nov 1994", None),
            ("in a while", None),
            ("-5", None),
        ] {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(wait(&format!("retry-after: {retry_after}\r\n{date}")), expected, "{retry_after}");
            assert_eq!(wait(&format!("{date}retry-after: {retry_after}\r\n")), expected, "{retry_after}");
        }
        assert_eq!(wait("retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n"), Some(Duration::ZERO), "by our own clock");
        assert!(wait("retry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\n") > Some(Duration::from_secs(1 << 30)));
        let both = wait("retry-after: 9\r\ngrpc-retry-pushback-ms: 50\r\n");
        assert_eq!(both, Some(Duration::from_millis(50)), "gRPC's own word is the more exact one");
    }

    #[test]
    fn dates_are_written_as_http_has_them() {
        assert_eq!(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(951_827_696), "Tue, 29 Feb 2000 12:34:56 GMT");
        assert_eq!(date(4_102_444_799), "Thu, 31 Dec 2099 23:59:59 GMT");
    }
}
