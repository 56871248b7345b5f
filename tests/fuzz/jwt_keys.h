// Public keys, and what was signed with the private ones before they were thrown away: nothing else will ever be.
#ifndef MODELPRESS_TESTS_FUZZ_JWT_KEYS_H_
#define MODELPRESS_TESTS_FUZZ_JWT_KEYS_H_

namespace modelpress::server {

inline constexpr char kJwks[] =
    R"({"keys": [{"kty": "EC", "crv": "P-256", "kid": "ec", "x": "0JcBwzUZX6_4Z5Hrlm8z9AWW3L1LyVoAGQNhtlkrwQE", "y": "GhRgV_o6ayfICAIjfdzIxjUWc3rbLYaEtPOoSzI7Tlw"}, {"kty": "RSA", "kid": "rsa", "e": "AQAB", "n": "ubNizUPg-UT8G3L-Oq_TELRW6G3NEYuoXwUSduqehVkqCMLj15qmtzQz_edN5m48dWLbBGD-fAiSkpEloLtuJWsJoF34vzRVO4eFsqDNbY-vzXo_CmcvbjSTu8Fq03HPdEvnPRN1ymx1uuahls8bQFSjuWM59uieIeDNjozn7yvesb8C9EXI1A95EZTtgVHoGagZ15njlX-Vnv_s9JzGe6sQHbtcz54i0Yv198f1-AF_UoYvFw9tkQdEnzxW2_0FRIRk8bOtOx6nfUYqZ5J87y7rSEN63Yo-0YrCdj9_zVDIXkMx5eplNkEeLGNIOteX8Bj070UrDBRvZrDcJWt2BQ"}]})";

inline constexpr char kClaims[] =
    R"({"iss":"https://issuer","aud":["modelpress","other"],"sub":"alice","exp":99999999999,"nbf":1600000000,"project":"vision","role":["writer"]})";  // until the year 5138

// `kClaims` signed with each of the keys: header, claims, signature.
inline constexpr const char* kJwtParts[][3] = {
    {"eyJhbGciOiJFUzI1NiIsImtpZCI6ImVjIn0",
     "eyJpc3MiOiJodHRwczovL2lzc3VlciIsImF1ZCI6WyJtb2RlbHByZXNzIiwib3RoZXIiXSwic3ViIjoiYWxpY2UiLCJleHAiOjk5OTk5OTk5OTk5LCJuYmYiOjE"
     "2MDAwMDAwMDAsInByb2plY3QiOiJ2aXNpb24iLCJyb2xlIjpbIndyaXRlciJdfQ",
     "fLVIl8P9dzIMY8j9BR0Kv2-njiAeG8aG43uI8mBU5fBHESkwWeTbyV7cvr4bN04UTo6TQ7Nmbwcsbx0iPI8XwQ"},
    {"eyJhbGciOiJSUzI1NiIsImtpZCI6InJzYSJ9",
     "eyJpc3MiOiJodHRwczovL2lzc3VlciIsImF1ZCI6WyJtb2RlbHByZXNzIiwib3RoZXIiXSwic3ViIjoiYWxpY2UiLCJleHAiOjk5OTk5OTk5OTk5LCJuYmYiOjE"
     "2MDAwMDAwMDAsInByb2plY3QiOiJ2aXNpb24iLCJyb2xlIjpbIndyaXRlciJdfQ",
     "HGMYlYd1fkmCpwIP3_uQ-ipbvh3Qz3t50mx84LbTb9yt-FMUIa69vqYDhmYapY1In529BHiRqJ71qliKzrEPYoMm_u2aoohT8pYp737ukAVkd_QxsZYNc_"
     "e47jqiowo4kVq7Q-Bq7IdfzAB9KitO7XGDi8_ABltSGvU7I8E-yzskUZ9B97hxLTNGgRoPiWPiwyKjCwKbzXcSp772hNQ_2Zf7Y4fyo9ijOETahrRIP7LPY5c_"
     "lqrCh0bBam44Bn6Uz-ckcMcckkSWHJ-twM0F54oSersgbSdomvYVnPgcz0glqzhHba7gp2fMtIUK2Jr68Km-9TxLdDPqtGkNqkv55g"},
};

}  // namespace modelpress::server

#endif  // MODELPRESS_TESTS_FUZZ_JWT_KEYS_H_
