# What there is in the fake AWS: the cluster's issuer as a provider; a role for each service account, each for one path of
# secrets; and their secrets. For the act `doctor` there are roles that are wrong each in its own way, and two more accounts:
# one whose provider is for other clients, and one without a provider.
# Arguments: $issuer, $test, $prod, $batch, $shop and $doctor, the values.

def host: $issuer | ltrimstr("https://");

def role_in($aws; $name; $subject; $audience; $resource): {
  arn: "arn:aws:iam::\($aws):role/\($name)",
  trust_policy: {Version: "2012-10-17", Statement: [{
    Effect: "Allow", Action: "sts:AssumeRoleWithWebIdentity",
    Principal: {Federated: "arn:aws:iam::\($aws):oidc-provider/\(host)"},
    Condition: {StringEquals: {"\(host):sub": $subject, "\(host):aud": $audience}}}]},
  policy: {Version: "2012-10-17", Statement: [{
    Effect: "Allow", Action: "secretsmanager:GetSecretValue",
    Resource: "arn:aws:secretsmanager:\($resource)"}]}};

def role($name; $namespace; $account; $path):
  role_in("111122223333"; $name; "system:serviceaccount:\($namespace):\($account)"; "sts.amazonaws.com";
    "eu-central-1:111122223333:secret:\($path)/*");

def of_doctor($aws; $name; $account; $audience):
  role_in($aws; $name; "system:serviceaccount:doctor:\($account)"; $audience; "*:\($aws):secret:doctor/*");

def secret($name; $value): {region: "eu-central-1", name: $name, value: $value};

{
  oidc_providers: [
    {issuer: $issuer, client_ids: ["sts.amazonaws.com"], jwks_file: "jwks.json"},
    {issuer: $issuer, client_ids: ["somebody-else"], jwks_file: "jwks.json", account: "444455556666"}],
  roles: [
    role("test"; "test"; "app"; "test"),
    role("prod"; "prod"; "app"; "prod"),
    role("batch"; "prod"; "batch"; "batch"),
    role("shop-web"; "shop"; "web"; "shop"),
    of_doctor("111122223333"; "doctor"; "app"; "sts.amazonaws.com"),
    of_doctor("111122223333"; "other-sub"; "somebody-else"; "sts.amazonaws.com"),
    of_doctor("111122223333"; "other-aud"; "other-aud"; "somebody-else"),
    of_doctor("444455556666"; "other-clients"; "other-clients"; "sts.amazonaws.com"),
    of_doctor("777788889999"; "no-issuer"; "no-issuer"; "sts.amazonaws.com"),
    of_doctor("111122223333"; "elsewhere"; "elsewhere"; "sts.amazonaws.com")],
  secrets: [
    secret("test/database-password"; $test),
    secret("prod/database-password"; $prod),
    secret("batch/report-key"; $batch),
    secret("shop/database-password"; $shop),
    secret("shop/api-key"; "key-" + $shop),
    secret("doctor/password"; $doctor),
    secret("doctor/busy"; $doctor)],
  throttled: ["doctor/busy"]
}
