//! `api`: what a client of the API sends: a path, headers and a body.

use vmm::api::Request;
use vmm::api::routes::{self, Serves};
use vmm::config::VmConfig;

/// The first line is a method, a path with a query, and the type of the body, which is the rest.
pub fn api(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (line, body) = (String::from_utf8_lossy(&data[..end]), data.get(end + 1..).unwrap_or_default());
    let mut words = line.splitn(3, ' ');
    let mut word = || words.next().filter(|word| !word.is_empty());
    let (method, target, content_type) = (word().unwrap_or_default(), word().unwrap_or_default(), word());
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let refused = routes::check_content_type(content_type).err();
    assert!(refused.is_none_or(|refusal| refusal.status == 415));
    let route = match routes::find(method, path) {
        Ok(route) => route,
        Err(refusal) => return assert!(matches!(refusal.status, 404 | 405) && !refusal.message.is_empty()),
    };
    if !matches!(route.serves, Serves::Call(_)) {
        return;
    }
    match route.read(query, body) {
        Ok(Request::Create(config)) => {
            // What was read can be told again, as vm.info does.
            let text = serde_json::to_string(&config).expect("a configuration has a JSON form");
            assert_eq!(serde_json::from_str::<VmConfig>(&text).expect("it reads its own JSON"), *config);
        }
        Ok(_) => {}
        Err(refusal) => {
            assert!(matches!(refusal.status, 400 | 501) && !refusal.message.is_empty(), "{refusal:?}")
        }
    }
}
